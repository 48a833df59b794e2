"""Reports over finished evaluations: `results` reads them, `leaderboard` ranks, `render` and `plots` show."""
