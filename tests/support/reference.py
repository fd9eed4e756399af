"""The references in docs/reference/, generated from the code: cog runs the functions below.

`nox -s docs` writes them, `nox -s lint` checks that they are up to date.
"""

import inspect
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args

import msgspec
import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.testing import CliRunner

from k2cli.avro.builtin import builtin_name, builtin_schema
from k2cli.codec.upgrade import UPGRADES
from k2cli.commands.app import app
from k2cli.commands.config_files import _CLUSTER
from k2cli.commands.metrics import RunMetrics
from k2cli.config import documented_sections, load_settings, settings_document
from k2cli.errors import K2Error
from k2cli.events import EVENTS, Event
from k2cli.flow import Totals
from k2cli.ingestion.csv import layout as layouts_module
from k2cli.records import KINDS, RecordKind
from k2cli.rejects import Cause
from support.scraping import consumption_of_nothing

_EXAMPLE = "Example: "
_NAMES = {str: "text", int: "number", float: "number", Path: "path"}
_SUFFIXES = {"counter": "_total", "info": "_info"}  # of the names that Prometheus shows
LAYOUTS = Path(layouts_module.__file__).parent / "layouts"


# --- Markdown


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def plain(text: str) -> str:
    """Write text so that Markdown shows it as it is; `code` stays code."""
    parts = " ".join(text.split()).split("`")
    for index, part in enumerate(parts):
        escaped = part.replace("|", "\\|")
        if index % 2 == 0:
            escaped = escaped.replace("<", "\\<").replace("*", "\\*")
        parts[index] = escaped
    return "`".join(parts)


def code(text: str) -> str:
    """Write text as code, also in a cell of a table."""
    return f"`{text}`".replace("|", "\\|") if text else ""


# --- Commands


def commands() -> Iterator[tuple[str, ...]]:
    """Name every command that does something, such as ("query", "trades"), in help's order."""
    for path, node in _nodes():
        if not isinstance(node, TyperGroup):
            yield path


def command(path: Sequence[str]) -> TyperCommand | TyperGroup:
    """Return the command of a path."""
    found: TyperCommand | TyperGroup = dict(_nodes())[tuple(path)]
    return found


@cache
def _nodes() -> tuple[tuple[tuple[str, ...], Any], ...]:
    """Name all groups and commands that help shows, a group before its commands."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return (((), root), *_below(root, ()))


def _below(group: TyperGroup, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, node in group.commands.items():
        if not node.hidden:
            yield (*path, name), node
            if isinstance(node, TyperGroup):
                yield from _below(node, (*path, name))


def example(path: Sequence[str]) -> str:
    """Return the example in a command's help, which is one line."""
    return inspect.cleandoc(command(path).help or "").partition(_EXAMPLE)[2].split("\n")[0]


def commands_index() -> str:
    """List all commands with their summaries."""
    rows = []
    for path in commands():
        name = f"k2 {' '.join(path)}"
        summary = command(path).get_short_help_str(200)
        rows.append([f"[{code(name)}](#{name.replace(' ', '-')})", plain(summary)])
    return table(["Command", "Purpose"], rows)


def commands_reference() -> str:
    """Describe every command: usage, description, example, arguments and options."""
    return "\n\n".join(_section(path, node) for path, node in _nodes())


def _section(path: tuple[str, ...], node: TyperCommand | TyperGroup) -> str:
    name = " ".join(["k2", *path])
    context = typer.Context(node, info_name=name)
    is_group = isinstance(node, TyperGroup)
    help_text = inspect.cleandoc(node.help or "").partition(_EXAMPLE)[0]
    parts = [f"{'##' if is_group or len(path) < 2 else '###'} {name}", _paragraphs(help_text)]
    if is_group and path:
        return "\n\n".join(parts)  # its only option is --help
    if not is_group:
        usage = " ".join(node.get_usage(context).removeprefix("Usage: ").split())
        parts += [f"```text\n{usage}\n```", f"Example:\n\n```sh\n{example(path)}\n```"]
    for title, params in _panels(node, context).items():
        kind = "Argument" if isinstance(params[0], TyperArgument) else "Option"
        rows = [[_spelled(each), *_cells(each, context)] for each in params]
        parts += [f"{title}:", table([kind, "Value", "Description", "Default"], rows)]
    return "\n\n".join(parts)


def _panels(node: TyperCommand | TyperGroup, context: typer.Context) -> dict[str, list[Any]]:
    """Group what help shows: arguments and options by panel, in help's order."""
    panels: dict[str, list[Any]] = {"Arguments": [], "Options": []}
    for each in node.get_params(context):
        if not getattr(each, "hidden", False) and each.name != "help":
            usual = "Arguments" if isinstance(each, TyperArgument) else "Options"
            panels.setdefault(getattr(each, "rich_help_panel", None) or usual, []).append(each)
    return {title: params for title, params in panels.items() if params}


def _spelled(param: TyperArgument | TyperOption) -> str:
    if isinstance(param, TyperArgument):
        return code(param.display_name_raw + ("..." if param.nargs == -1 else ""))
    long_first = sorted(param.opts, key=lambda name: not name.startswith("--"))
    return ", ".join(code(name) for name in [*long_first, *param.secondary_opts])


def _cells(param: TyperArgument | TyperOption, context: typer.Context) -> list[str]:
    """Write value, description and default of a parameter."""
    need = " **Required.**" if param.required else ""
    return [_value(param), f"{plain(param.help or '')}{need}".strip(), _default(param, context)]


def _value(param: Any) -> str:
    if getattr(param, "is_flag", False):
        return "flag"
    repeated = ", repeatable" if getattr(param, "multiple", False) else ""
    of = param.type_descriptor.annotation
    for each in (of, *get_args(of)):
        if isinstance(each, type) and issubclass(each, Enum) and not param.metavar:
            return ", ".join(code(str(choice.value)) for choice in each) + repeated
    if param.metavar:
        name = code(param.metavar)
    else:
        known = (kind for kind in (of, *get_args(of)) if kind in _NAMES)
        name = _NAMES[next(known, str)]
    return name + _bounds(param) + repeated


def _bounds(param: Any) -> str:
    least, most = param.min, param.max
    if least is not None and most is not None and most < 2**31:
        return f", {least} to {most}"
    return "" if least is None else f", at least {least}"


def _default(param: Any, context: typer.Context) -> str:
    """Write the default as help shows it: code if it is a value, words if it is described."""
    if isinstance(param.show_default, str):
        return plain(param.show_default)
    value = param._extract_default_help_str(ctx=context)
    if value is None or value is False or not param.show_default:
        return ""
    return code(
        param._get_default_string(ctx=context, show_default_is_str=False, default_value=value)
    )


# --- Settings, exit codes, events, metrics


def settings_reference() -> str:
    """Describe the settings of k2's own sections: key, variable, default."""
    folder = Path("/nonexistent")
    defaults = settings_document(load_settings({"K2_HOME": str(folder)}))
    parts = []
    for name, (text, settings) in documented_sections().items():
        rows = [
            [
                code(f"{name}.{each.key}"),
                code(f"K2_{name}_{each.key}".upper()),
                code(_toml(defaults[name][each.key])) if each.key in defaults[name] else "none",
                plain(each.text),
            ]
            for each in settings
        ]
        head = table(["Setting", "Variable", "Default", "Description"], rows)
        parts.append(f"### {code(f'[{name}]')}\n\n{_paragraphs(text)}\n\n{head}")
    return "\n\n".join(parts)


def open_settings_reference() -> str:
    """Describe the sections that are passed on to libraries, with examples of their keys."""
    parts = []
    for name, (text, settings) in _CLUSTER.items():
        rows = [
            [
                code(each.key),
                code(_variable(name, each.key)),
                code(str(each.example)),
                plain(each.text),
            ]
            for each in settings
        ]
        head = table(["Setting", "Variable", "Example", "Description"], rows)
        parts.append(f"### {code(f'[{name}]')}\n\n{_paragraphs(text)}\n\n{head}")
    return "\n\n".join(parts)


def _variable(section: str, key: str) -> str:
    words = key.replace(".", "__").replace("-", "_") if section == "catalog" else key
    return f"K2_{section}_{words.replace('.', '_')}".upper()


def _toml(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _paragraphs(text: str) -> str:
    return "\n\n".join(plain(each) for each in inspect.cleandoc(text).strip().split("\n\n"))


def errors_reference() -> str:
    """List the classes of errors with their exit codes."""
    errors = sorted(K2Error.__subclasses__(), key=lambda each: each.exit_code)
    rows = [
        [str(each.exit_code), code(each.__name__), plain(inspect.getdoc(each) or "")]
        for each in errors
    ]
    return table(["Exit code", "Class", "Raised for"], rows)


def causes_reference() -> str:
    """List what can be wrong with rejects."""
    ordered = sorted(Cause, key=lambda cause: cause.is_whole)
    rows = [
        [code(cause), "the input as a whole" if cause.is_whole else "a field", plain(cause.meaning)]
        for cause in ordered
    ]
    return table(["Cause", "Of", "Meaning"], rows)


def events_reference() -> str:
    """List the events with their levels and fields."""
    rows = [
        [code(event.name), event.level.value, _fields(event), plain(" ".join(event.meanings))]
        for event in EVENTS.values()
    ]
    return table(["Event", "Level", "Fields", "Meaning"], rows)


def _fields(event: Event) -> str:
    """Name the fields of an event, or those of each of its forms."""
    if event.name == "summary":
        return "the totals of the run"
    return "; or ".join(", ".join(map(code, fields)) for fields in event.forms)


def metrics_reference() -> str:
    """List the metrics of `--metrics` with the commands that serve them."""
    served: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stream, consume = RunMetrics(_ignore), RunMetrics(_ignore)
        stream.watch(Totals())
        consume.watch_consumption(consumption_of_nothing(Path(folder)))
        for command_name, run in (("stream", stream), ("consume", consume)):
            for metric in run.registry.collect():
                if metric.name.startswith("k2_"):
                    served.setdefault(metric.name, [metric]).append(code(command_name))
    rows = [
        [
            code(metric.name + _SUFFIXES.get(metric.type, "")),
            metric.type,
            ", ".join(names),
            plain(metric.documentation),
        ]
        for metric, *names in (served[name] for name in sorted(served))
    ]
    return table(["Metric", "Type", "Served by", "Description"], rows)


def _ignore(event: str, /, **fields: object) -> None:
    """Take an event; none is expected."""
    raise AssertionError((event, fields))


# --- Records and layouts


def records_reference() -> str:
    """Describe the records that the tables store."""
    return "\n\n".join(_record(_stem(kind)) for kind in KINDS.values())


def older_records_reference() -> str:
    """Describe the older records, each with the mapping to the newer one."""
    return "\n\n".join(
        f"{_record(name)}\n\n#### From {code(name)} to {code(_stem(upgrade.kind))}\n\n"
        f"{_printed('schema', 'show', name, '--mapping', '--as', 'markdown')}"
        for name, upgrade in UPGRADES.items()
    )


def _stem(kind: RecordKind) -> str:
    return str(builtin_name(kind.avro["name"]))


def _record(name: str) -> str:
    avro = builtin_schema(name)
    full_name = f"{avro['namespace']}.{avro['name']}"
    fields = _printed("schema", "show", name, "--as", "markdown")
    doc = f"{plain(avro['doc'])}\n\n" if avro.get("doc") else ""
    return f"### {code(name)}\n\nAvro record {code(full_name)}. {doc}{fields}"


def _printed(*args: str) -> str:
    """Return what a command prints."""
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    return done.stdout.replace("<", "\\<").strip()


def layouts_reference() -> str:
    """Describe the built-in layouts, each with its TOML."""
    parts = []
    for path in sorted(LAYOUTS.glob("*.toml")):
        text = path.read_text(encoding="utf-8").strip()
        head = [line for line in text.split("\nkind")[0].splitlines() if line.startswith("#")]
        body = text.removeprefix("\n".join(head)).strip()
        words = plain(" ".join(line.removeprefix("#").strip() for line in head))
        parts.append(f"### {code(path.stem)}\n\n{words}\n\n```toml\n{body}\n```")
    return "\n\n".join(parts)


def layout_keys_reference() -> str:
    """Show the keys of a layout as its module documents them."""
    doc = inspect.getdoc(layouts_module) or ""
    lines = [line for line in doc.splitlines() if line.startswith("    ")]
    return "```toml\n" + inspect.cleandoc("\n".join(["", *lines])) + "\n```"
