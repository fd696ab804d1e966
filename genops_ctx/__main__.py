"""``python -m genops_ctx`` is the ``genops-ctx`` command."""

from genops_ctx.cli import main

if __name__ == "__main__":
    main(prog_name="genops-ctx")
