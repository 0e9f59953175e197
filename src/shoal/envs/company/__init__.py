"""A company on a local cloud: real state, tasks that change it, and ways to solve them.

TheMCPCompany (arXiv 2510.19286), smaller and offline: moto's server stands for the cloud, tools
come from AWS's own service models, and success is what is true afterwards. Needs the extra
``company``.
"""
