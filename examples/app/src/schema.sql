CREATE TABLE members (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text        NOT NULL CHECK (name <> ''),
    email      text        NOT NULL UNIQUE,
    status     text        NOT NULL DEFAULT 'pending'
               CHECK (status IN ('pending', 'approved', 'rejected', 'suspended')),
    joined_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX members_name ON members (lower(name) text_pattern_ops);
CREATE INDEX members_status ON members (status);

CREATE TABLE users (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL UNIQUE,
    password_hash text NOT NULL
);

-- A reference is chosen by the client: the same one twice is the same payment. What is wrong is not changed: a second
-- row corrects it by the difference, at most one for each payment.
CREATE TABLE payments (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    member_id    bigint      NOT NULL REFERENCES members (id),
    amount_cents bigint      NOT NULL CHECK (amount_cents > 0 OR corrects IS NOT NULL),
    method       text        NOT NULL CHECK (method IN ('cash', 'card', 'transfer')),
    reference    text        NOT NULL UNIQUE,
    entered_by   bigint      NOT NULL REFERENCES users (id),
    entered_at   timestamptz NOT NULL DEFAULT now(),
    corrects     bigint UNIQUE REFERENCES payments (id)
);
CREATE INDEX payments_member ON payments (member_id, entered_at);

-- Who entered, imported or corrected which payment. By reference and without a foreign key: an entry outlives its payment.
CREATE TABLE payment_audit (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment      text        NOT NULL,
    action       text        NOT NULL CHECK (action IN ('entered', 'imported', 'corrected')),
    user_id      bigint      NOT NULL REFERENCES users (id),
    amount_cents bigint      NOT NULL,
    reason       text        NOT NULL DEFAULT '',
    at           timestamptz NOT NULL DEFAULT now(),
    UNIQUE (payment, action)
);

-- Each time the job has read a file with payments. One that is `running` and whose process is gone has failed as well.
CREATE TABLE import_runs (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    file          text        NOT NULL,
    sha256        text        NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    state         text        NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'succeeded', 'failed')),
    rows_read     bigint      NOT NULL DEFAULT 0,
    inserted      bigint      NOT NULL DEFAULT 0,
    already_there bigint      NOT NULL DEFAULT 0,
    rejected      bigint      NOT NULL DEFAULT 0,
    error         text,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at   timestamptz
);
CREATE INDEX import_runs_file ON import_runs (file, id);

-- Rows of files that were put aside: once for each line of a file, however often it is read.
CREATE TABLE import_rejects (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id  bigint NOT NULL REFERENCES import_runs (id),
    sha256  text   NOT NULL,
    line    bigint NOT NULL,
    reason  text   NOT NULL,
    content text   NOT NULL,
    UNIQUE (sha256, line)
);

CREATE TABLE member_audit (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    member_id  bigint      NOT NULL REFERENCES members (id),
    user_id    bigint      NOT NULL REFERENCES users (id),
    old_status text        NOT NULL,
    new_status text        NOT NULL,
    reference  text        NOT NULL UNIQUE,
    at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX member_audit_member ON member_audit (member_id, at);

-- `path` is relative to the uploads directory.
CREATE TABLE media (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title       text        NOT NULL,
    reference   text        NOT NULL UNIQUE,
    path        text        NOT NULL,
    sha256      text        NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    bytes       bigint      NOT NULL CHECK (bytes >= 0),
    uploaded_by bigint      NOT NULL REFERENCES users (id),
    uploaded_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX media_newest ON media (uploaded_at DESC, id DESC);

-- Somebody writes the time here every second: a restored copy thus says itself how far it reaches.
CREATE TABLE heartbeat (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX heartbeat_at ON heartbeat (at);
