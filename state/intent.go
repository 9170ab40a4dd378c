package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Intent is one plan in the journal: what is about to be done, and how far it got.
type Intent struct {
	ID         uint64          `json:"id"`
	VM         string          `json:"vm"`
	Plan       string          `json:"plan"`
	Why        string          `json:"why,omitempty"`
	Generation uint64          `json:"generation,omitempty"`
	Steps      []Step          `json:"steps"`
	Data       json.RawMessage `json:"data,omitempty"` // what the plan needs to go on or to be undone
	Begun      time.Time       `json:"begun"`
	Ended      time.Time       `json:"ended,omitzero"`
	Outcome    Outcome         `json:"outcome,omitempty"`
}

// Step of a plan, in the plan's order.
type Step struct {
	Name   string     `json:"name"`
	Status StepStatus `json:"status,omitempty"`
	Error  string     `json:"error,omitempty"`
	Time   time.Time  `json:"time,omitzero"` // of the last outcome
}

// StepStatus is the last outcome of a step.
type StepStatus string

// Outcomes of a step.
const (
	StepOpen   StepStatus = ""       // no outcome: it may have run, partly run, or not
	StepDone   StepStatus = "done"   // it ran well
	StepFailed StepStatus = "failed" // it ran and returned an error; what it left behind is unknown
	StepUndone StepStatus = "undone" // its undo ran well
)

// Outcome of a plan.
type Outcome string

// Outcomes of a plan.
const (
	OutcomeDone      Outcome = "done"      // all steps ran
	OutcomeUndone    Outcome = "undone"    // it was given up and everything was put back
	OutcomeFailed    Outcome = "failed"    // it was given up and something may be left
	OutcomeAbandoned Outcome = "abandoned" // something more urgent took its place, which deals with what is left
)

// keptIntents is how many ended plans the journal keeps, over all VMs.
const keptIntents = 256

// Begin writes a plan into the journal and returns its number. ID, Begun, Ended, Outcome and the steps' outcomes are set by
// the store. A VM has one open plan at most: [IntentOpenError] otherwise. A plan that takes over ends the other one as
// [OutcomeAbandoned] in the same [Store.Do].
func (tx *Tx) Begin(in Intent) (uint64, error) {
	if in.VM == "" || in.Plan == "" {
		return 0, fmt.Errorf("%w: intent without VM or plan", ErrInvalid)
	}
	if len(in.Data) > 0 && !json.Valid(in.Data) {
		return 0, fmt.Errorf("%w: data of plan %s for VM %s is no JSON", ErrInvalid, in.Plan, in.VM)
	}
	open, err := tx.OpenIntents()
	if err != nil {
		return 0, err
	}
	for _, o := range open {
		if o.VM == in.VM {
			return 0, &IntentOpenError{Open: o}
		}
	}
	id, err := tx.next(bucketIntents)
	if err != nil {
		return 0, err
	}
	in.ID, in.Begun, in.Ended, in.Outcome = id, now(), time.Time{}, ""
	in.Steps = slices.Clone(in.Steps)
	for i := range in.Steps {
		in.Steps[i] = Step{Name: in.Steps[i].Name}
	}
	return id, tx.put(bucketIntents, numberKey(id), &in, nil)
}

// StepDone records that step i (from 0) ran: well if err is nil. A step may be reported again, the last report counts.
func (tx *Tx) StepDone(id uint64, i int, err error) error {
	st := Step{Status: StepDone}
	if err != nil {
		st = Step{Status: StepFailed, Error: err.Error()}
	}
	return tx.step(id, i, st)
}

// StepUndone records that the undo of step i ran: well if err is nil.
func (tx *Tx) StepUndone(id uint64, i int, err error) error {
	st := Step{Status: StepUndone}
	if err != nil {
		st = Step{Status: StepFailed, Error: "undo: " + err.Error()}
	}
	return tx.step(id, i, st)
}

func (tx *Tx) step(id uint64, i int, st Step) error {
	return tx.changeIntent(id, func(in *Intent) error {
		if i < 0 || i >= len(in.Steps) {
			return fmt.Errorf("%w: intent %d (%s) has no step %d", ErrInvalid, id, in.Plan, i)
		}
		st.Name, st.Time = in.Steps[i].Name, now()
		in.Steps[i] = st
		return nil
	})
}

// SetIntentData replaces the data of an open plan.
func (tx *Tx) SetIntentData(id uint64, data json.RawMessage) error {
	if !json.Valid(data) {
		return fmt.Errorf("%w: data of intent %d is no JSON", ErrInvalid, id)
	}
	return tx.changeIntent(id, func(in *Intent) error { in.Data = data; return nil })
}

func (tx *Tx) changeIntent(id uint64, change func(*Intent) error) error {
	var old Intent
	raw, err := tx.get(bucketIntents, numberKey(id), &old)
	if errors.Is(err, ErrNotFound) && tx.has(bucketEnded, numberKey(id)) {
		return fmt.Errorf("intent %d: %w", id, ErrIntentEnded)
	}
	if err != nil {
		return fmt.Errorf("intent %d: %w", id, err)
	}
	next := old
	next.Steps = slices.Clone(old.Steps)
	if err := change(&next); err != nil {
		return err
	}
	return tx.put(bucketIntents, numberKey(id), &next, &previous{raw: raw, decoded: &old})
}

// End closes a plan. Ending it again with the same outcome is no error, so that it may be repeated after a restart.
func (tx *Tx) End(id uint64, outcome Outcome) error {
	switch outcome {
	case OutcomeDone, OutcomeUndone, OutcomeFailed, OutcomeAbandoned:
	default:
		return fmt.Errorf("%w: unknown outcome %q of intent %d", ErrInvalid, outcome, id)
	}
	key := numberKey(id)
	var ended Intent
	if _, err := tx.get(bucketEnded, key, &ended); err == nil {
		if ended.Outcome == outcome {
			return nil
		}
		return fmt.Errorf("intent %d: %w (%s)", id, ErrIntentEnded, ended.Outcome)
	}
	var old Intent
	raw, err := tx.get(bucketIntents, key, &old)
	if err != nil {
		return fmt.Errorf("intent %d: %w", id, err)
	}
	next := old
	next.Ended, next.Outcome = now(), outcome
	if err := tx.put(bucketEnded, key, &next, &previous{raw: raw, decoded: &old}); err != nil {
		return err
	}
	if err := tx.delete(bucketIntents, key); err != nil {
		return err
	}
	return tx.trim(bucketEnded, keptIntents)
}

// Intent returns one plan, open or ended. Old ended ones are dropped: [ErrNotFound].
func (tx *Tx) Intent(id uint64) (Intent, error) {
	var in Intent
	_, err := tx.get(bucketIntents, numberKey(id), &in)
	if errors.Is(err, ErrNotFound) {
		_, err = tx.get(bucketEnded, numberKey(id), &in)
	}
	if err != nil {
		return Intent{}, fmt.Errorf("intent %d: %w", id, err)
	}
	return in, nil
}

// OpenIntents returns the plans that have not ended, in the order in which they were begun.
func (tx *Tx) OpenIntents() ([]Intent, error) { return tx.intents(bucketIntents) }

// EndedIntents returns the last ended plans, in the order in which they were begun.
func (tx *Tx) EndedIntents() ([]Intent, error) { return tx.intents(bucketEnded) }

func (tx *Tx) intents(bucket string) ([]Intent, error) {
	var out []Intent
	err := each(tx, bucket, func(_ string, in Intent) error {
		out = append(out, in)
		return nil
	})
	return out, err
}

// Begin is [Tx.Begin] on its own.
func (s *Store) Begin(in Intent) (id uint64, err error) {
	err = s.Do(func(tx *Tx) error { id, err = tx.Begin(in); return err })
	return id, err
}

// StepDone is [Tx.StepDone] on its own.
func (s *Store) StepDone(id uint64, i int, err error) error {
	return s.Do(func(tx *Tx) error { return tx.StepDone(id, i, err) })
}

// StepUndone is [Tx.StepUndone] on its own.
func (s *Store) StepUndone(id uint64, i int, err error) error {
	return s.Do(func(tx *Tx) error { return tx.StepUndone(id, i, err) })
}

// End is [Tx.End] on its own.
func (s *Store) End(id uint64, outcome Outcome) error {
	return s.Do(func(tx *Tx) error { return tx.End(id, outcome) })
}

// Intent is [Tx.Intent] on its own.
func (s *Store) Intent(id uint64) (Intent, error) {
	return read(s, func(tx *Tx) (Intent, error) { return tx.Intent(id) })
}

// OpenIntents is [Tx.OpenIntents] on its own.
func (s *Store) OpenIntents() ([]Intent, error) { return read(s, (*Tx).OpenIntents) }

// EndedIntents is [Tx.EndedIntents] on its own.
func (s *Store) EndedIntents() ([]Intent, error) { return read(s, (*Tx).EndedIntents) }

// numberKey sorts like the number and can be read by a person.
func numberKey(n uint64) string {
	s := strconv.FormatUint(n, 10)
	return "00000000000000000000"[len(s):] + s
}
