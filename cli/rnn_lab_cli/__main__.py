"""`python -m rnn_lab_cli`."""

import sys

from rnn_lab_cli.main import main

sys.exit(main())
