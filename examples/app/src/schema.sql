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

-- A reference is chosen by the client: the same one twice is the same payment.
CREATE TABLE payments (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    member_id    bigint      NOT NULL REFERENCES members (id),
    amount_cents bigint      NOT NULL CHECK (amount_cents > 0),
    method       text        NOT NULL CHECK (method IN ('cash', 'card', 'transfer')),
    reference    text        NOT NULL UNIQUE,
    entered_by   bigint      NOT NULL REFERENCES users (id),
    entered_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX payments_member ON payments (member_id, entered_at);

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
