"""What comes over the network: datasets of the Hub, and files at an https address.

Both stay in the cache of `datasets`. Where the Hub does not answer, that cache is all there is, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from triptych.data.source import CHOICE, Source, dataset_name, is_address
from triptych.errors import DataError, Fault


@cache
def reach_hub() -> bool:
    """Whether the Hub answers, asked once; where it does not, its libraries look into their cache at once.

    Left alone they try six times for every name.
    """
    import datasets
    import huggingface_hub

    constants = huggingface_hub.constants
    if constants.is_offline_mode():
        return False
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # no name service, no route, a proxy that refuses: the client raises errors of many families
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True  # as the environment's variable of this name
        return False
    return True


def download(source: Source) -> None:
    """Brings what a source names on the network into the cache; of one on this machine there is nothing to do.

    Raises:
        DataError: it cannot be had.
    """
    name = dataset_name(source.file)
    if name is not None:
        load_rows(source, *name)
    elif is_address(source.file):
        fetch(source.file)


def load_rows(source: Source, name: str, split: str) -> Iterable[dict[str, Any]]:
    """The rows of a dataset on the Hub, or in a folder that is as one there.

    Args:
        split: where the source says none.

    Raises:
        DataError: `datasets` cannot load it.
    """
    import datasets

    reach_hub()
    split = source.split or split
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(
            name, source.configuration, data_dir=source.data_dir, split=split, revision=source.revision
        )
    except Exception as error:  # the library raises many kinds, and each is the name, the split or the network
        given = {field: getattr(source, field) for field in CHOICE} | {"split": split}
        chosen = "".join(f", {what} {value}" for what, value in given.items() if value)
        what = f"no such file, and datasets cannot load it as {name}{chosen}: {error}"
        raise DataError([Fault(source.file, None, None, what)]) from error
    return rows


def fetch(address: str) -> Path:
    """The file at an address; once it was fetched it is not looked up again.

    Raises:
        DataError: it is not in the cache, and cannot be fetched.
    """
    import datasets

    reach_hub()
    config = datasets.DownloadConfig(use_etag=False, disable_tqdm=True)
    try:
        cached = Path(datasets.DownloadManager(download_config=config).download(address))
    except Exception as error:  # as above
        raise DataError([Fault(address, None, None, f"cannot be fetched: {error}")]) from error
    # The cache names it by a hash, and how its rows are written is told by its own name.
    named = cached.with_name(f"{cached.name}-{Path(urlsplit(address).path).name}")
    if not named.exists():
        named.unlink(missing_ok=True)
        named.symlink_to(cached.name)
    return named
