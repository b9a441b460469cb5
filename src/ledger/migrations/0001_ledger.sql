-- One row for each time a server began to use this ledger.
CREATE TABLE processes (
    id BIGINT PRIMARY KEY,
    started_ms BIGINT NOT NULL,
    host TEXT NOT NULL,
    -- None while it runs, and after it was killed until somebody notices.
    ended_ms BIGINT
);

-- One row for each admitted request. Ids are the process's, times 2^40, plus a count.
CREATE TABLE entries (
    id BIGINT PRIMARY KEY,
    opened_ms BIGINT NOT NULL,
    closed_ms BIGINT,
    request_id TEXT NOT NULL,
    key_name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    path TEXT NOT NULL,
    stream BIGINT NOT NULL,
    model TEXT NOT NULL,
    side TEXT,
    target TEXT,
    upstream TEXT,
    provider TEXT,
    reason TEXT,
    attempts BIGINT NOT NULL,
    prompt_tokens BIGINT,
    cached_tokens BIGINT,
    output_tokens BIGINT,
    reasoning_tokens BIGINT,
    usage_source TEXT,
    -- What an answer made here would have cost at the target it is mapped to.
    saved_nusd BIGINT,
    saved_target TEXT,
    ttft_ms BIGINT,
    total_ms BIGINT,
    outcome TEXT
);
CREATE INDEX entries_by_time ON entries (opened_ms);

-- One row for each time bytes left for an upstream: money held before, and what became of it.
CREATE TABLE attempts (
    id BIGINT PRIMARY KEY,
    entry BIGINT NOT NULL,
    reserved_ms BIGINT NOT NULL,
    settled_ms BIGINT,
    request_id TEXT NOT NULL,
    key_name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    path TEXT NOT NULL,
    purpose TEXT NOT NULL,
    reason TEXT NOT NULL,
    target TEXT NOT NULL,
    upstream TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT,
    worst_nusd BIGINT NOT NULL,
    worst_tokens BIGINT NOT NULL,
    -- None until it is settled.
    cost_nusd BIGINT,
    tokens BIGINT,
    prompt_tokens BIGINT,
    cached_tokens BIGINT,
    output_tokens BIGINT,
    reasoning_tokens BIGINT,
    usage_source TEXT,
    basis TEXT NOT NULL,
    ttft_ms BIGINT,
    outcome TEXT,
    request_id_upstream TEXT
);
CREATE INDEX attempts_by_time ON attempts (reserved_ms);
CREATE INDEX attempts_by_entry ON attempts (entry);
CREATE INDEX attempts_open ON attempts (id) WHERE settled_ms IS NULL;

-- What is spent and held of each budget in each window: the sum of `attempts`, kept so that servers who share
-- a ledger need not add it up for each request.
CREATE TABLE counters (
    budget TEXT NOT NULL,
    start_ms BIGINT NOT NULL,
    used BIGINT NOT NULL,
    PRIMARY KEY (budget, start_ms)
);

-- What was told already, and must not be told again.
CREATE TABLE alerts (
    cause TEXT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    text TEXT NOT NULL
);

-- Every request with what it cost.
CREATE VIEW requests AS
SELECT e.*,
       CASE WHEN e.attempts = 0 THEN 0 ELSE (SELECT CAST(SUM(COALESCE(a.cost_nusd, a.worst_nusd)) AS BIGINT) FROM attempts a WHERE a.entry = e.id) END AS cost_nusd,
       (SELECT MAX(a.basis) FROM attempts a WHERE a.entry = e.id) AS cost_basis
FROM entries e;
