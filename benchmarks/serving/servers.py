"""Servers in processes of their own: a real one of a tiny random model, and a scripted one."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODEL = "tiny"
KEYS = {"ann": "sk-ann", "bob": "sk-bob", "eve": "sk-eve"}
KEY_FILE = """
[tenants.ann]
keys = ["sk-ann"]
metrics = true

[tenants.bob]
keys = ["sk-bob"]
max_running = 4

[tenants.eve]
keys = ["sk-eve"]
max_running = 2
max_waiting = 2
"""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCRIPTED = """
from shoal.engine.scripted import ScriptedEngine
from shoal.server.serve import address_of, listen, serve
import sys
with listen("127.0.0.1", 0) as sock:
    print("at", address_of(sock), file=sys.stderr, flush=True)
    serve(ScriptedEngine("one two three"), sock, model_name="small")
"""


@dataclass(frozen=True, slots=True)
class Running:
    """A server in a process of its own."""

    host: str
    port: int
    pid: int

    @property
    def resident_mib(self) -> float:
        """Memory of the process that is really there."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def server(command: Sequence[str]) -> Iterator[Running]:
    """Start a server that prints its address, and stop it as an operator would."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = None
        while not found:
            line = process.stderr.readline()
            if not line:
                raise SystemExit(f"The server ended: {' '.join(command)}")
            found = re.search(r"http://([\d.]+):(\d+)/v1", line)
        yield Running(found[1], int(found[2]), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stderr.close()


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers with bytes as tokens."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True) for word in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML})
    )
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
