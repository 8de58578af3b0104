"""Which of two sets of videos do people, a model or a metric prefer, and how sure is that?"""
