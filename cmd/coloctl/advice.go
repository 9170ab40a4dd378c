package main

import (
	"errors"
	"strings"

	"github.com/coloctl/coloctl/internal/both"
)

// taskError says what was tried, and where, before what came back.
type taskError struct {
	task string // empty when the error says it already
	err  error
	next string // what to do, if that depends on the task
}

func (e *taskError) Error() string {
	if e.task == "" {
		return e.err.Error()
	}
	return e.task + ": " + e.err.Error()
}

func (e *taskError) Unwrap() error { return e.err }

// attempt names what was tried on which VM and node in an error.
func attempt(err error, task, vm string, t *target) error {
	if err == nil {
		return nil
	}
	words := []string{task}
	if vm != "" {
		words = append(words, vm)
	}
	if t != nil && t.Name != "" {
		words = append(words, "on "+t.Name)
	}
	return &taskError{task: strings.Join(words, " "), err: err}
}

// advice is what to do next about an error; empty if nothing is known, or if the error's own text says it.
func advice(err error) string {
	var task *taskError
	if errors.As(err, &task) && task.next != "" {
		return task.next
	}
	return both.Advice(err)
}

// message is an error as a person reads it.
func message(err error) string {
	text := strings.TrimSpace(err.Error())
	if next := advice(err); next != "" && !strings.Contains(text, next) {
		text += "\n  next: " + next
	}
	return text
}
