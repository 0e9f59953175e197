"""The master as a pure function: ``step(state, event) -> (state, what to send)``.

PCCL (arXiv 2505.14065), "Roles, phases, states": peers vote, and whatever all accepted peers of a
group have voted for happens. There are no sockets and no clock here; the shell
(:mod:`shoal.collectives.serve`) brings packets and disconnects, the simulator brings them in
random order. Departures from the official code, all for the sake of its known faults:

- groups vote apart, so a newcomer of one does not stop the others;
- a leaver or a broken link ends the *epoch* of its ring: all operations in flight are given up
  together, and every later call is answered with "relink" until a new ring stands;
- signatures (count, element type, operation, format) are compared before an operation begins;
- votes that can never meet are answered at once, with :class:`OutOfStep` as the reason;
- a finished measurement is followed by a round of connecting, so the better ring is installed.
"""

from __future__ import annotations

from shoal.collectives.consensus import evaluate
from shoal.collectives.events import Event, Joined, Left, MasterState, Outgoing, Waited
from shoal.collectives.requests import said
from shoal.collectives.turn import Turn


def step(state: MasterState, event: Event) -> tuple[MasterState, list[Outgoing]]:
    """What follows from one event. The state that went in stays as it was."""
    if isinstance(event, Waited):
        return _waited(state)
    number = event.group if isinstance(event, Joined) else state.home.get(event.peer)
    if number is None:  # kicked while its packet was on the way
        return state, []
    turn = Turn(state, number)
    if isinstance(event, Joined):
        turn.joined(event)
    elif isinstance(event, Left):
        turn.remove(event.peer, event.reason)
    else:
        said(turn, event.peer, event.packet)
    evaluate(turn)
    return turn.result(), turn.out


def _waited(state: MasterState) -> tuple[MasterState, list[Outgoing]]:
    out: list[Outgoing] = []
    for number in state.groups:
        turn = Turn(state, number)
        turn.group.expected = frozenset()
        evaluate(turn)
        state = turn.result()
        out += turn.out
    return state, out
