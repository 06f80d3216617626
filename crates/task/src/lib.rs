//! What a model is for: predictors that turn inputs into answers.
