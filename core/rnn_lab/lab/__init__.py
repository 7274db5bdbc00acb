"""Many runs: plan a protocol's series, run it over the places at hand, keep what became of every job."""
