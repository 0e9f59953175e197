"""Who may talk: both sides of a connection show that they know the shared token.

To the master: its nonce, the peer's nonce and proof, the master's proof. Between peers, who know
run and epoch from the master, one packet with a proof over all it says. The token itself never
travels. Tensors are not encrypted: across the open internet, peers belong behind a tunnel.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket

from shoal.collectives.errors import MasterLost, Refused

MAGIC = b"shoal/1\n"
NONCE = 16
PROOF = hashlib.sha256().digest_size
GREETING = len(MAGIC) + NONCE


def prove(token: str, *parts: object) -> bytes:
    """HMAC-SHA256 of the parts under the token."""
    text = "\x1f".join(map(str, parts)).encode()
    return hmac.new(token.encode(), text, hashlib.sha256).digest()


def greeting() -> bytes:
    """What the master says first: which protocol, and a nonce."""
    return MAGIC + secrets.token_bytes(NONCE)


def answer_to(hello: bytes, token: str) -> tuple[bytes, bytes]:
    """A peer's answer to a greeting, and the proof it must get back.

    Raises :class:`Refused` where the other side does not speak this protocol.
    """
    if hello[: len(MAGIC)] != MAGIC:
        raise Refused(f"There is no master behind this address: it greets with {hello[:8]!r}.")
    nonce = secrets.token_bytes(NONCE)
    theirs = hello[len(MAGIC) :].hex()
    return (
        nonce + prove(token, "peer", theirs, nonce.hex()),
        prove(token, "master", theirs, nonce.hex()),
    )


def check_answer(answer: bytes, hello: bytes, token: str) -> bytes:
    """The master's proof for a peer whose answer is right; raises :class:`Refused` otherwise."""
    nonce, theirs = answer[:NONCE].hex(), hello[len(MAGIC) :].hex()
    if not hmac.compare_digest(answer[NONCE:], prove(token, "peer", theirs, nonce)):
        raise Refused("A connection does not know the shared token.")
    return prove(token, "master", theirs, nonce)


def greet(connection: socket.socket, token: str) -> None:
    """A peer's side of the handshake, blocking. Raises :class:`Refused` or :class:`MasterLost`."""
    reply, expected = answer_to(_exactly(connection, GREETING), token)
    connection.sendall(reply)
    try:
        proof = _exactly(connection, PROOF)
    except MasterLost as error:
        raise Refused("The master has closed the connection: is it the same token?") from error
    if not hmac.compare_digest(proof, expected):
        raise Refused("What answers there does not know the shared token.")


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            piece = connection.recv(size - len(data))
        except OSError as error:
            raise MasterLost(f"The master does not answer: {error}.") from error
        if not piece:
            raise MasterLost("The master has closed the connection while greeting.")
        data += piece
    return data
