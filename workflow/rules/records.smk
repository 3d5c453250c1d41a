# The guard: artifacts and Snakemake's records of them must belong together (workflow/records.py says why).
# Included last, since it looks at what the rules make.
from records import complaint, is_bare, skew

if workflow.is_main_process:
    if skewed := skew(set(targets(*FAMILIES)(None))):
        raise WorkflowError(*complaint(skewed))
    if is_bare():
        logger.warning("There are records but no artifacts: `dvc pull` fetches these, else they are made again.")
