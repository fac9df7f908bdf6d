"""The gateway through which handlers reach the internet and nothing inside.

Theory of operation. In a slot's network namespace every address is local (`namespace`), so a
handler's connection, whatever it names, ends at a listening socket that was opened there and that
the daemon holds. The daemon (`gateway`) sees the literal address wanted, judges it (`rules`), dials
the same address and passes bytes on (`splice`): there are no proxy settings, and nothing is
resolved between the judgement and the dialling. Names are looked up by the daemon (`dns`); where
names are allowed or denied, a TLS greeting must say the right one (`hello`). What was reached and
what was refused is counted (`tally`).
"""
