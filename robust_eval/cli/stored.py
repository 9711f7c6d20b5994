"""What a storage holds, for the commands that look at it."""

from pathlib import Path
from typing import Final

from robust_eval.errors import InvalidArgument
from robust_eval.evaluators.outcomes import rebuilt
from robust_eval.job import Job, JobStatus
from robust_eval.storage.base import Storage

_MOST_IDS: Final = 20


def open_storage(text: str) -> Storage:
    """Open a storage by its URL, or a file of SQLite by its path.

    Raises:
        InvalidArgument: there is no such file: looking must not make one.
    """
    url = text if "://" in text else f"sqlite:///{text}"
    if not may_exist(url):
        raise InvalidArgument(
            f"There is no file {short(url)!r}. Pass a search's storage: robust-eval run makes runs.db."
        )
    return Storage.from_url(url).connect()


def may_exist(url: str) -> bool:
    """Tell whether there is something to look at; of what is no file only connecting can tell."""
    path = short(url)
    return path == url or Path(path).is_file()


def short(url: str) -> str:
    """Give the path of a file of SQLite, and any other storage's URL as it is."""
    return url.removeprefix("sqlite:///")


def search_of(storage: Storage, search_id: str | None) -> str:
    """Give the search that is meant: by default the last one.

    Raises:
        InvalidArgument: there is none, or not this one.
    """
    known = storage.load_all_search_ids()
    if search_id is None and known:
        return known[-1]
    if search_id is None or search_id not in known:
        raise InvalidArgument(f"There is no search {search_id or ''!r}. There are: {_listed(known)}.")
    return search_id


def _listed(known: list[str]) -> str:
    last = known[-_MOST_IDS:]
    return ("..., " if len(known) > len(last) else "") + (", ".join(last) or "none")


def jobs_of(storage: Storage, search_id: str) -> list[Job]:
    """Give all jobs of a search, those without an outcome too."""
    data = storage.load_search(search_id)
    return [_job(f"{search_id}.{number}", each) for number, each in data.items()]


def job_of(storage: Storage, job_id: str, search_id: str | None) -> Job:
    """Give one job by its id, or by its number alone in the search that is meant.

    Raises:
        InvalidArgument: there is none with this id.
    """
    if "." not in job_id:
        job_id = f"{search_of(storage, search_id)}.{job_id}"
    try:
        return _job(job_id, storage.load_job(job_id))
    except KeyError:
        raise InvalidArgument(
            f"There is no job {job_id!r}. An id has the search and the number, 0.12; the number alone is of the last "
            "search."
        ) from None


def _job(job_id: str, data: dict[str, object]) -> Job:
    job = rebuilt(job_id, data)
    job.status = JobStatus.READY if data["out"] is None else JobStatus.DONE
    return job
