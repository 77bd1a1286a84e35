"""A process that renders a chat template of Jinja2 with bounded time and memory, because a template is a program.

    python -m transformer_jax.data.jinja_process < task.json

It reads one JSON object from stdin and writes one to stdout:

    {"template": ..., "special": {"bos_token": ...}, "date": "2026-05-07", "jobs": [[messages, generation prompt], ...]}
    {"texts": ["...", ...]}    or    {"error": "...", "job": 3}

Jinja2's immutable sandbox keeps a template from attributes of Python objects, and so from files and the network. It
does not bound loops and strings: `{{ "a" * 10**10 }}`. The limits of this process do.

The environment is that of Transformers: trimmed blocks, loop controls, `raise_exception`, `strftime_now`, a `tojson`
that escapes nothing, and {% generation %} blocks, whose text is marked here by the two characters of `MARKS`.
"""

import datetime
import json
import sys
from typing import Any

from transformer_jax import extras

SECONDS, BYTES = 20, 1 << 30  # the most processor time and address space
CHARACTERS = 1 << 26  # the most characters of all results together
MARKS = ("\ufdd0", "\ufdd1")  # code points that no text holds: Unicode reserves them for such use


def environment(date: datetime.date) -> Any:
    """Jinja2's sandbox with the helpers that Transformers gives to templates.

    Args:
      date: the day that `strftime_now` formats.
    """
    extras.need("jinja2", "the tokenizer's chat template")
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks the text of {% generation %} ... {% endgeneration %}, the assistant's."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Any) -> str:
            return f"{MARKS[0]}{caller()}{MARKS[1]}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "strftime_now": date.strftime}
    return made


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """The object to write for the object that was read.

    Args:
      task: see the module.
    """
    job = 0
    try:
        template = environment(datetime.date.fromisoformat(task["date"])).from_string(task["template"])
        given = {"tools": None, "documents": None} | task["special"]
        texts, room = [], CHARACTERS
        for job, (messages, prompt) in enumerate(task["jobs"]):
            texts.append(template.render(messages=messages, add_generation_prompt=prompt, **given))
            room -= len(texts[-1])
            if room < 0:
                return {"error": f"it writes more than {CHARACTERS:,} characters", "job": job}
        return {"texts": texts}
    except MemoryError:
        return {"error": f"it needs more than {BYTES >> 20:,} MiB", "job": job}
    except RecursionError:
        return {"error": "it recurses without end", "job": job}
    except Exception as error:  # a template may raise anything
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300], "job": job}


def main() -> None:
    """Answers stdin on stdout, within the limits where the platform has them."""
    task = json.load(sys.stdin)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    except (ImportError, ValueError, OSError):
        print("chat templates run without limits of memory on this platform", file=sys.stderr)
    json.dump(answer(task), sys.stdout)


if __name__ == "__main__":
    main()
