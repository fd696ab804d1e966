"""genops_ctx"""
