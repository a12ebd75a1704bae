"""Verbs in groups: data, recipes, registry, audit, keys, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.shared import (
    DataName,
    Format,
    Json,
    Offline,
    Out,
    Overrides,
    Query,
    Sheet,
    Target,
    emit,
    go_offline,
    work,
)
from luthier.errors import UserError

recipes_app = typer.Typer(no_args_is_help=True, help="Recipes that are shipped: ls, cp.")
registry_app = typer.Typer(no_args_is_help=True, help="Versions and their aliases: ls, promote, rollback.")
data_app = typer.Typer(no_args_is_help=True, help="A data file by itself, without a recipe: inspect, mapping.")
doctor_app = typer.Typer(no_args_is_help=True, help="Put a promise to the test on this machine: resume.")
keys_app = typer.Typer(no_args_is_help=True, help="Keys that sign decisions, requests and approvals: new.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit log: verify, ls.")


@data_app.command("inspect")
def data_inspect(
    data: DataName,
    format: Format = None,
    sheet: Sheet = None,
    query: Query = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Show format, columns, faults, detected shape, some rows with personal data masked, and the recipe for it."""
    from luthier.pipeline.inspect import inspect, inspect_lines
    from luthier.pipeline.named import Named

    seen = inspect(Named(data, format, sheet, query), offline=go_offline(offline))
    emit(seen.model_dump(mode="json"), inspect_lines(seen), as_json=as_json)


@data_app.command("mapping")
def data_mapping(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What data.privacy.keep_mapping wrote.")],
    surrogate: Annotated[str | None, typer.Option(help="Only what this stands for.")] = None,
    as_json: Json = False,
) -> None:
    """Open the mapping of pseudonyms: kind, surrogate, value. Its passphrase stands in LUTHIER_MAPPING_PASSPHRASE."""
    from luthier.data.privacy.pseudonyms import look_up, mapping_passphrase, read_mapping

    mapping = read_mapping(file, passphrase=mapping_passphrase(opening=file))
    rows = look_up(mapping, surrogate, file=file)
    lines = ["\t".join(json.dumps(one, ensure_ascii=False)[1:-1] for one in row.values()) for row in rows]
    emit(rows, lines, as_json=as_json)


@recipes_app.command("ls")
def recipes_ls(as_json: Json = False) -> None:
    """Names of the shipped recipes."""
    from luthier.recipes import names

    emit(list(names()), list(names()), as_json=as_json)


@recipes_app.command("cp")
def recipes_cp(
    name: str, destination: Annotated[Path | None, typer.Argument(help="A new folder; default: NAME")] = None
) -> None:
    """Copy a shipped recipe and its data, to make it yours."""
    from luthier.pipeline.start import copy_recipe

    path = copy_recipe(name, destination or Path(name))
    typer.echo(f"{path}\nnext: luthier run {path}")


@registry_app.command("ls")
def registry_ls(out: Annotated[Path, typer.Option("--out")] = Path("runs"), as_json: Json = False) -> None:
    """All versions with gate and aliases."""
    from luthier.pipeline.approvals import standing_in
    from luthier.store.registry import registry_of

    versions = [(one, standing_in(one)) for one in registry_of(out).versions()]
    lines = [
        f"{one.name}@{one.version}  gate {'passed' if standing.state == 'passed' else standing.state.upper()}  "
        f"{', '.join('@' + alias for alias in one.aliases) or '-'}  {one.created_at}  {one.run}"
        for one, standing in versions
    ]
    documents = [
        {**one.model_dump(mode="json"), "standing": standing.model_dump(mode="json")} for one, standing in versions
    ]
    emit(documents, lines or ["no versions yet"], as_json=as_json)


@registry_app.command("promote")
def registry_promote(
    version: Annotated[str, typer.Argument(metavar="NAME@NUMBER")],
    alias: Annotated[str, typer.Option(help="The alias that is to point to it.")] = "production",
    allow_refused: Annotated[
        bool, typer.Option("--allow-refused", help="Although the gate refused, where nobody may approve; audited.")
    ] = False,
    out: Annotated[Path, typer.Option("--out")] = Path("runs"),
) -> None:
    """Let an alias point to a version."""
    from luthier.pipeline.serve import promote

    typer.echo(promote(version, alias=alias, allow_refused=allow_refused, out=out))


@registry_app.command("rollback")
def registry_rollback(
    name: str,
    alias: Annotated[str, typer.Option()] = "production",
    out: Annotated[Path, typer.Option("--out")] = Path("runs"),
) -> None:
    """Let an alias point to the version that had it before."""
    from luthier.pipeline.serve import rollback

    typer.echo(rollback(name, alias=alias, out=out))


@audit_app.command("verify")
def audit_verify(out: Annotated[Path, typer.Option("--out")] = Path("runs"), as_json: Json = False) -> None:
    """Check the chain of hashes; names the first broken entry, or the log that should be there (exit 2)."""
    from luthier.pipeline.verdict import verify_audit

    verdict = verify_audit(out)
    sound = verdict.first_broken is None
    whole = [f"{verdict.entries} entries, the chain is whole"] if verdict.entries or not verdict.problem else []
    said = [verdict.problem] if verdict.problem else []
    lines = [*whole, *said] if sound else [f"entry {verdict.first_broken} is broken: {verdict.problem}"]
    emit(verdict.model_dump(mode="json"), lines, as_json=as_json)
    if not sound:
        raise UserError(
            f"{out / 'audit.jsonl'}: entry {verdict.first_broken} is broken: {verdict.problem}",
            way_out="compare with a backup; entries before it can be trusted",
        )


@audit_app.command("ls")
def audit_ls(out: Annotated[Path, typer.Option("--out")] = Path("runs"), as_json: Json = False) -> None:
    """All entries."""
    from luthier.pipeline.verdict import audit_of

    entries = audit_of(out).entries()
    lines = [f"{one.seq}  {one.time}  {one.actor}  {one.action}  {one.subject}" for one in entries]
    emit([one.model_dump(mode="json") for one in entries], lines, as_json=as_json)


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of its owner, as the approvers' file will call it.")],
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Encrypt it; asked for, or taken from LUTHIER_KEY_PASSPHRASE.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a key pair (Ed25519, as ssh-keygen does) in the Luthier home; prints the line for the approvers' file."""
    from luthier.govern.keys import new_key
    from luthier.pipeline.authority import keys_folder, new_passphrase

    path, public = new_key(keys_folder(), name, passphrase=new_passphrase() if passphrase else "")
    document = {"key": str(path), "line": f"{name} {public.line}", "fingerprint": public.fingerprint}
    lines = [f"{path}: {public.fingerprint}", "its line for the approvers' file:", document["line"]]
    emit(document, lines, as_json=as_json)


@doctor_app.command("resume")
def doctor_resume(
    target: Target,
    kills: Annotated[int, typer.Option(min=1, help="How often the run is killed.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    overrides: Overrides = None,
    out: Out = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Train twice, once killed (kill -9) at random moments and resumed: both must end in the same bits."""
    from luthier.pipeline.doctor import certify_resume, resume_lines
    from luthier.pipeline.order import BEFORE_TRAINING

    session = work(target, BEFORE_TRAINING, overrides, out, offline)
    certificate = certify_resume(session, kills=kills, seed=seed)
    emit(certificate.model_dump(mode="json"), resume_lines(certificate, session.run), as_json=as_json)
    if not certificate.equal:
        raise typer.Exit(1)
