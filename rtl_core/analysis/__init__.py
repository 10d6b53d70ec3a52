"""What stored ledgers, records and saved models tell beyond one perplexity: tables, each with a figure."""
