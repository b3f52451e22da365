"""Raw annotations → records: one module a source format, one pipeline behind them all."""
