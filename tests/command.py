"""The real command line for tests: in this process where that is quick, as a process of its own where it must be."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-P", "-m", "luthier.cli"]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be, without NaN or infinities."""
        return json.loads(self.out, parse_constant=_refuse)

    def fails(self, code: int, *words: str) -> Done:
        """Check that it ended with `code`, nothing on standard output and one message that holds all `words`."""
        message = self.err[self.err.rfind("error: ") :]
        assert self.code == code, self
        assert not self.out, self
        assert self.err.count("error: ") == 1, self
        assert "Traceback" not in self.err, self
        assert "\n  -> " in message, self
        for word in words:
            assert word in message, (word, message)
        return self

    def succeeds(self) -> Done:
        """Check that it ended well."""
        assert self.code == 0, self
        return self

    def decides(self) -> Done:
        """Check that all steps were done; the gate decides by what so few rows prove."""
        assert self.code in (0, 3), self
        return self


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def environment(**more: str) -> dict[str, str]:
    """What a test's processes see: offline, one thread, no terminal."""
    return os.environ | {"LUTHIER_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"} | more


def luthier(*arguments: str | Path, cwd: Path, seconds: float = 300, **more: str) -> Done:
    """Run a command in a process of its own; `more` goes into its environment."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def call(*arguments: str | Path, cwd: Path, **more: str) -> Done:
    """Run a command in this process; for those that start no stage (its words would not be seen) and no torch."""
    from luthier.cli import main

    out, err = io.StringIO(), io.StringIO()
    before, argv, code = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}, sys.argv, 0
    surroundings, hook = dict(os.environ), sys.excepthook
    sys.argv = ["luthier", *map(str, arguments)]
    os.environ.update(more)
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv, sys.excepthook = argv, hook
        os.environ.clear()
        os.environ.update(surroundings)
        for number, handler in before.items():
            signal.signal(number, handler)
    return Done(code, out.getvalue(), err.getvalue())


def paper_model(folder: Path) -> Path:
    """A model folder with everything but sense: zero weights written without torch, for what only looks at models."""
    import numpy as np
    from safetensors.numpy import save_file

    from tiny import write_tokenizer

    write_tokenizer(folder)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"model.embed_tokens.weight": np.zeros((384, 32), np.float32)}, folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    return folder
