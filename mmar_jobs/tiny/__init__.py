"""The embedded default: a small Qwen3-Omni and a synthetic benchmark with real WAV files."""
