"""Many prompts on one machine or many: lists of prompts, units that are committed once, engines that hand them out."""
