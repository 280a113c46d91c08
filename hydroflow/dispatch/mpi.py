"""Settings of Open MPI for programs that a job starts as one process, without mpirun."""

SERIAL = 'OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_pml=${OMPI_MCA_pml:-ob1} OMPI_MCA_orte_tmpdir_base="$PWD"'
"""Assignments for the shell line of a serial program, started in the job's folder.

Such a process needs neither a daemon nor a search for network hardware (0.1 s instead of 0.5 s to start). Each would then be
number 0 of the node, and all would share one session directory in ``/tmp``, which the first to end removes: beside five others,
2 % of pw.x starts failed in ``orte_session_dir`` (13 of 600, Open MPI 4.1.4). In the job's folder it is its own.
"""
