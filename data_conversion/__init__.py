"""Raw annotations → records: one module per source format, one pipeline behind them all."""
