-- PostgreSQL's image makes the database `reactune`; these belong to the servers beside it.
CREATE DATABASE mlflow;
CREATE DATABASE airflow;
