"""Files that a user provides: the data folder, what a folder holds, and rows of JSONL, JSON, CSV and parquet files.

Start with `folder.py` (which files are read), then `rows.py`: each row comes with its "FILE:LINE", so that an error can
name the place however much later it is found. `values.py` parses lines, JSON and CSV in bounded memory, for rows and
for documents alike, `parquet.py` reads parquet, and `row_text.py` finds text in a row that is not UTF-8; `opening.py`
opens what is compressed, and recognizes what is not text; `columns.py` reads the names of columns after a
path; `clutter.py` knows what systems and editors leave in any folder.
Packages that do not import each other (corpora, tasks) read through this one. No torch.
"""

from fledgling.files.columns import ColumnMap, list_names, require_names, split_columns
from fledgling.files.folder import (
    COMPRESSED_SUFFIXES,
    TEXT_SUFFIXES,
    FileStamps,
    FolderContents,
    list_folder,
    resolve_data_root,
    split_suffixes,
    stat_files,
)
from fledgling.files.opening import CORRUPT_FILE_ERRORS, NotTextError, open_file, open_text
from fledgling.files.rows import (
    ROW_FILES,
    BadRows,
    Row,
    RowBlock,
    is_row_file,
    list_row_blocks,
    read_rows,
    require_file,
)
from fledgling.files.values import LINE_SUFFIXES, MAX_ROW_BYTES, TABLE_SUFFIXES

__all__ = [
    "COMPRESSED_SUFFIXES",
    "CORRUPT_FILE_ERRORS",
    "LINE_SUFFIXES",
    "MAX_ROW_BYTES",
    "ROW_FILES",
    "TABLE_SUFFIXES",
    "TEXT_SUFFIXES",
    "BadRows",
    "ColumnMap",
    "FileStamps",
    "FolderContents",
    "NotTextError",
    "Row",
    "RowBlock",
    "is_row_file",
    "list_folder",
    "list_names",
    "list_row_blocks",
    "open_file",
    "open_text",
    "read_rows",
    "require_file",
    "require_names",
    "resolve_data_root",
    "split_columns",
    "split_suffixes",
    "stat_files",
]
