"""Tables of the studies in PostgreSQL."""

SCHEMA = 1
LIVE = "expires > clock_timestamp()"
TABLES = """
CREATE TABLE dnas_schema (version int NOT NULL);
CREATE TABLE dnas_studies (
    name text PRIMARY KEY, id text NOT NULL, config text NOT NULL, done text,
    seen timestamptz NOT NULL, resumed timestamptz NOT NULL);
CREATE TABLE dnas_events (study text, seq int, line text NOT NULL, PRIMARY KEY (study, seq));
CREATE TABLE dnas_records (study text, path text, body text NOT NULL, PRIMARY KEY (study, path));
CREATE TABLE dnas_jobs (
    study text, key text, id bigserial, attempt int NOT NULL, job text NOT NULL, state text NOT NULL,
    owner text, host text, expires timestamptz, answered int, go_on boolean, PRIMARY KEY (study, key));
CREATE TABLE dnas_messages (
    id bigserial PRIMARY KEY, nonce text UNIQUE, study text NOT NULL, key text NOT NULL, attempt int NOT NULL,
    kind text NOT NULL, body text NOT NULL);
CREATE INDEX dnas_messages_study ON dnas_messages (study, id);
CREATE TABLE dnas_leases (
    study text, role text, owner text NOT NULL, host text NOT NULL, expires timestamptz NOT NULL,
    PRIMARY KEY (study, role));
CREATE TABLE dnas_hosts (
    study text, owner text, host text NOT NULL, slots int NOT NULL, expires timestamptz NOT NULL,
    PRIMARY KEY (study, owner));
CREATE TABLE dnas_files (
    study text, key text, planned int, epoch int, name text NOT NULL, error double precision,
    PRIMARY KEY (study, key, planned, epoch));
CREATE TABLE dnas_results (study text, key text, name text NOT NULL, PRIMARY KEY (study, key));
"""
