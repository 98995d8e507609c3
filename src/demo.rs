//! Sample backends: auth, sms and llm, for `ringway demo` and for tests.
