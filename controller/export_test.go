package controller

import "testing"

// AnswerLater has the node's engine answer some requests later.
func AnswerLater(t testing.TB, c *Config) { c.wrap = answerLater(t) }
