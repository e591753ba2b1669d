//! TCP connections that move between machines, with the state of the service behind them.
