"""`python -m tests.families [PAGE ...] [--write]`: hold every variant, or those of some pages, to everything.

Prints the largest relative differences from the training steps written by hand. With --write the results of all pages
become the table of docs/pipelines.md; two processes share the work.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.families.examine import examine_page
from tests.families.registry import PAGES
from tests.families.table import write


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"of {', '.join(PAGES)}; all, if none is named")
    parser.add_argument("--write", action="store_true", help="write docs/pipelines.md (all pages)")
    options = parser.parse_args(arguments)
    print("| variant | loss | gradient | worst parameter | bf16 gradient | bf16·fp32 cosine | result | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    rows, failed = [], 0
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for results in pool.map(examine_page, PAGES if options.write else options.pages or PAGES):
            for found, line in results:
                print(line, flush=True)
                failed += found is None
                rows += [found.row] if found else []
    if options.write and not failed:
        write(rows)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
