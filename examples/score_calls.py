"""What an answer that calls a tool is worth, by several rewards: python examples/score_calls.py

No model is needed: a tool, what was wanted of it, and four answers.
"""

from shoal.core.records import ToolSpec
from shoal.envs.calls import dialect
from shoal.envs.calls.wanted import wanted
from shoal.training.rewards import variant

HOTEL = ToolSpec(
    "book_hotel",
    "Book a room.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer"},
            "view": {"type": "string", "enum": ["sea", "garden"], "default": "garden"},
        },
        "required": ["city", "nights"],
    },
)
WANTED = wanted("example", [("book_hotel", {"city": ["Rome", "Roma"], "nights": [3]})], [HOTEL])
ANSWERS = {
    "right": '{"name": "book_hotel", "arguments": {"city": "rome", "nights": 3}}',
    "right, with the default": '{"name": "book_hotel", "arguments": '
    '{"city": "Roma", "nights": 3, "view": "garden"}}',
    "a wrong number": '{"name": "book_hotel", "arguments": {"city": "Rome", "nights": 4}}',
    "a name given twice": '{"name": "book_hotel", "arguments": {"city": "Rome", "city": "Rome"}}',
}


def main() -> None:
    """Print a line for each answer."""
    spoken = dialect("hermes")
    names = ("original", "intermediate", "coarse")
    print(f"{'':26}" + "".join(f"{name:>14}" for name in names))
    for label, call in ANSWERS.items():
        answer = spoken.read(f"<tool_call>\n{call}\n</tool_call>")
        scores = [variant(name).score(WANTED, answer, spoken) for name in names]
        print(f"{label:26}" + "".join(f"{one.total:14.2f}" for one in scores))
        if scores[0].errors:
            print(f"{'':26}  {scores[0].errors[0]}")
    print(f"{len(ANSWERS)} answers scored.")


if __name__ == "__main__":
    main()
