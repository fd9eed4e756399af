"""The modules of k2 as a graph. import-linter checks the layers; this checks within packages."""

from graphlib import CycleError, TopologicalSorter

import grimp


def test_no_modules_import_each_other() -> None:
    """Imports for annotations alone count, too."""
    graph = grimp.build_graph("k2cli", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as exc:
        raise AssertionError(" -> ".join(exc.args[1])) from exc
