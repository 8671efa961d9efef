"""From Base to Instruct: fine-tuning on demonstrations, and prompting as the baseline."""
