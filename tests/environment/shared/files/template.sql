CREATE TYPE kind AS ENUM ('in', 'out');
CREATE TABLE mail (id serial PRIMARY KEY, subject text, way kind DEFAULT 'in');
INSERT INTO mail (subject) VALUES ('hi');
CREATE VIEW seen AS SELECT count(*) FROM mail;
