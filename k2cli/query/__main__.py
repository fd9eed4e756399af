"""`python -m k2cli.query FD`: the process that starts the workers for user SQL."""

from k2cli.startup import leave_out_pandas

if __name__ == "__main__":
    leave_out_pandas()
    from k2cli.query.forkserver import main

    main()
