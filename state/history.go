package state

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Entry is one line of the history: something that happened, for people and for `history`.
type Entry struct {
	// Seq rises over all entries of the node; the store sets it.
	Seq uint64 `json:"seq"`
	// Time is when it happened; the store sets it if it is zero. It may go backwards when the clock was set, Seq doesn't.
	Time       time.Time       `json:"time"`
	VM         string          `json:"vm,omitempty"` // empty: the node itself
	Kind       string          `json:"kind"`
	Text       string          `json:"text"`
	Generation uint64          `json:"generation,omitempty"`
	Data       json.RawMessage `json:"data,omitempty"`
}

// Query selects from the history. The zero value selects everything.
type Query struct {
	VM    string    // only this VM's
	Node  bool      // only the node's own (VM is empty)
	After uint64    // only entries with a higher Seq: for reading on
	Since time.Time // only entries of this time or later
	Limit int       // only the last so many; 0: no limit
}

// nodeHistory is where entries without VM are kept: no VM can have this name.
const nodeHistory = "@node"

// Append adds an entry and drops the VM's oldest ones beyond Options.History. It returns the entry's number.
func (tx *Tx) Append(e Entry) (uint64, error) {
	if e.Kind == "" {
		return 0, fmt.Errorf("%w: history entry without kind: %q", ErrInvalid, e.Text)
	}
	if e.VM != "" && !nameRule.MatchString(e.VM) {
		return 0, fmt.Errorf("%w: history entry of VM %q", ErrInvalid, e.VM)
	}
	if len(e.Data) > 0 && !json.Valid(e.Data) {
		return 0, fmt.Errorf("%w: data of history entry %q is no JSON", ErrInvalid, e.Text)
	}
	seq, err := tx.next(bucketHistory)
	if err != nil {
		return 0, err
	}
	e.Seq = seq
	if e.Time.IsZero() {
		e.Time = now()
	}
	bucket := historyBucket(e.VM)
	if err := tx.put(bucket, numberKey(seq), &e, nil); err != nil {
		return 0, err
	}
	return seq, tx.trim(bucket, tx.s.opt.History)
}

func historyBucket(vm string) string {
	if vm == "" {
		vm = nodeHistory
	}
	return bucketHistory + "/" + vm
}

// History returns the entries that q selects, oldest first.
func (tx *Tx) History(q Query) ([]Entry, error) {
	var buckets []string
	switch {
	case q.Node:
		buckets = []string{historyBucket("")}
	case q.VM != "":
		buckets = []string{historyBucket(q.VM)}
	default:
		for _, name := range tx.children(bucketHistory) {
			buckets = append(buckets, bucketHistory+"/"+name)
		}
	}
	var out []Entry
	for _, b := range buckets {
		n := 0
		err := eachBack(tx, b, func(_ string, e Entry) (more bool) {
			if e.Seq <= q.After || (q.Limit > 0 && n >= q.Limit) {
				return false
			}
			if !e.Time.Before(q.Since) {
				out = append(out, e)
				n++
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(numberKey(a.Seq), numberKey(b.Seq)) })
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[len(out)-q.Limit:]
	}
	return out, nil
}

// DropHistory removes a VM's history, or the node's own if vm is empty. It is no error if there is none.
func (tx *Tx) DropHistory(vm string) error { return tx.deleteBucket(historyBucket(vm)) }

// Append is [Tx.Append] on its own.
func (s *Store) Append(e Entry) (seq uint64, err error) {
	err = s.Do(func(tx *Tx) error { seq, err = tx.Append(e); return err })
	return seq, err
}

// History is [Tx.History] on its own.
func (s *Store) History(q Query) ([]Entry, error) {
	return read(s, func(tx *Tx) ([]Entry, error) { return tx.History(q) })
}

// DropHistory is [Tx.DropHistory] on its own.
func (s *Store) DropHistory(vm string) error {
	return s.Do(func(tx *Tx) error { return tx.DropHistory(vm) })
}
