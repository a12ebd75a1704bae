"""MLflow: a database in the run folder, or the server that MLFLOW_TRACKING_URI names where the run is not offline."""

from luthier.spec.plugins import SinkFacts

FACTS = SinkFacts(
    name="mlflow",
    summary="an MLflow run: SQLite in the run folder, or MLFLOW_TRACKING_URI",
    packages=("mlflow", "sqlalchemy", "alembic"),
    extra="mlflow",
)
