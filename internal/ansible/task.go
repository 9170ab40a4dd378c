package ansible

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/both"
)

// State is what a task wants of a VM.
type State string

// States.
const (
	Present      State = "present"       // exists, with the given spec
	Absent       State = "absent"        // exists on no node that is reached
	Started      State = "started"       // runs, on whichever node
	Stopped      State = "stopped"       // runs nowhere
	Protected    State = "protected"     // runs, and is proven redundant
	Unprotected  State = "unprotected"   // runs alone, and stays so
	SwitchedOver State = "switched-over" // runs on the node named by primary
	FailedOver   State = "failed-over"   // goes on here without the arbiter's word
)

var states = []State{Present, Absent, Started, Stopped, Protected, Unprotected, SwitchedOver, FailedOver}

// ErrParameters is in each error about the parameters of a task. Nothing was done.
var ErrParameters = errors.New("wrong parameters")

// paramError names the parameter that is wrong.
type paramError struct{ param, msg string }

func (e *paramError) Error() string { return e.param + ": " + e.msg }
func (e *paramError) Unwrap() error { return ErrParameters }

// specError is about the spec that the task has.
type specError struct{ err error }

func (e *specError) Error() string   { return e.err.Error() }
func (e *specError) Unwrap() []error { return []error{ErrParameters, e.err} }

func wrong(param, format string, args ...any) error {
	return &paramError{param, fmt.Sprintf(format, args...)}
}

// Mode is what Ansible says of a run.
type Mode struct {
	Check bool // nothing may be done
	Diff  bool // differences are wanted
	NoLog bool // nothing of the parameters may be told
}

// Task is a task's parameters.
type Task struct {
	Mode
	VM    string
	State State
	Spec  []byte     // as the task has it; nil: none
	File  string     // where it is from, for messages
	Want  *colo.Spec // Spec, read

	Socket          string
	Nodes           []both.Endpoint
	Identity, Trust string

	Primary      string         // the node on which the VM is to run; for Present the one that makes it
	Confirm      string         // the VM's name: the caller vouches for a forced failover
	DeleteImages bool           // with Absent
	Force        bool           // with Stopped: without asking the guest
	Grace        time.Duration  // with Stopped: how long the guest may take
	Sync         blockrepl.Mode // with Protected
	Reason       string
	Timeout      time.Duration
	Wait         bool

	given []string // names of the parameters that the task has
}

// DefaultSocket is where a daemon listens unless its configuration says otherwise.
const DefaultSocket = "/run/coloctl/api.sock"

const defaultTimeout = 10 * time.Minute

// params are the parameters, in the order of the documentation.
var params = []struct {
	name string
	only []State // states that have it; nil: all
	read func(t *Task, raw json.RawMessage) error
}{
	{"name", nil, func(t *Task, raw json.RawMessage) (err error) { t.VM, err = text(raw); return err }},
	{"state", nil, readState},
	{"spec", []State{Present, Started, Protected, Unprotected}, readSpec},
	{"spec_file", []State{Present, Started, Protected, Unprotected}, readSpecFile},
	{"socket", nil, func(t *Task, raw json.RawMessage) (err error) { t.Socket, err = path(raw); return err }},
	{"nodes", nil, readNodes},
	{"identity", nil, func(t *Task, raw json.RawMessage) (err error) { t.Identity, err = path(raw); return err }},
	{"trust", nil, func(t *Task, raw json.RawMessage) (err error) { t.Trust, err = path(raw); return err }},
	{"primary", []State{Present, SwitchedOver, FailedOver}, func(t *Task, raw json.RawMessage) (err error) { t.Primary, err = text(raw); return err }},
	{"confirm", []State{FailedOver}, func(t *Task, raw json.RawMessage) (err error) { t.Confirm, err = text(raw); return err }},
	{"delete_images", []State{Absent}, func(t *Task, raw json.RawMessage) (err error) { t.DeleteImages, err = truth(raw); return err }},
	{"force", []State{Stopped}, func(t *Task, raw json.RawMessage) (err error) { t.Force, err = truth(raw); return err }},
	{"grace", []State{Stopped}, func(t *Task, raw json.RawMessage) (err error) { t.Grace, err = span(raw, 0); return err }},
	{"resync", []State{Protected}, readSync},
	{"reason", nil, func(t *Task, raw json.RawMessage) (err error) { t.Reason, err = text(raw); return err }},
	{"timeout", nil, func(t *Task, raw json.RawMessage) (err error) { t.Timeout, err = span(raw, time.Second); return err }},
	{"wait", nil, func(t *Task, raw json.RawMessage) (err error) { t.Wait, err = truth(raw); return err }},
}

// ParseTask reads what Ansible gives to the module. The mode is valid even with an error, as far as Ansible told it.
func ParseTask(data []byte) (*Task, error) {
	t := &Task{State: Present, Timeout: defaultTimeout, Wait: true}
	var in map[string]json.RawMessage
	if err := json.Unmarshal(data, &in); err != nil {
		return t, fmt.Errorf("%w: the file with the parameters is no JSON object: %w", ErrParameters, err)
	}
	if err := t.read(in); err != nil {
		return t, err
	}
	var errs []error
	known := []string{}
	for _, p := range params {
		known = append(known, p.name)
		raw, ok := in[p.name]
		if !ok || string(raw) == "null" { // Ansible's omit, or a default that is none
			continue
		}
		t.given = append(t.given, p.name)
		if err := p.read(t, raw); err != nil {
			errs = append(errs, named(p.name, err))
		}
	}
	for name := range in {
		if !strings.HasPrefix(name, "_ansible_") && !slices.Contains(known, name) {
			errs = append(errs, wrong(name, "unknown parameter: expected one of %s", strings.Join(known, ", ")))
		}
	}
	if len(errs) > 0 {
		slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return t, errors.Join(errs...)
	}
	return t, t.check()
}

func named(param string, err error) error {
	var p *paramError
	if errors.As(err, &p) {
		return err
	}
	return &paramError{param, err.Error()}
}

func (m *Mode) read(in map[string]json.RawMessage) error {
	for _, x := range []struct {
		name string
		to   *bool
	}{{"_ansible_no_log", &m.NoLog}, {"_ansible_check_mode", &m.Check}, {"_ansible_diff", &m.Diff}} {
		raw, ok := in[x.name]
		if !ok {
			continue
		}
		v, err := truth(raw)
		if err != nil {
			m.NoLog = m.NoLog || x.to == &m.NoLog
			return wrong(x.name, "%v; what Ansible wants is not clear, so nothing is done", err)
		}
		*x.to = v
	}
	return nil
}

// check looks at what the parameters mean together.
func (t *Task) check() error {
	var errs []error
	has := func(p string) bool { return slices.Contains(t.given, p) }
	for _, p := range params {
		if has(p.name) && p.only != nil && !slices.Contains(p.only, t.State) {
			errs = append(errs, wrong(p.name, "is for state %s, not for %s", orList(p.only), t.State))
		}
	}
	switch {
	case has("spec") && has("spec_file"):
		errs = append(errs, wrong("spec_file", "expected spec or spec_file, not both"))
	case t.Spec != nil:
		spec, err := colo.ParseSpec(t.Spec, t.File)
		if err != nil {
			errs = append(errs, &specError{withoutPlace(err, t.File == "")})
			break
		}
		t.Want = spec
		if t.VM == "" {
			t.VM = spec.Name
		}
		if t.VM != spec.Name {
			errs = append(errs, wrong("name", "%q, but the spec is of %q", t.VM, spec.Name))
		}
	case t.VM == "":
		errs = append(errs, wrong("name", "missing: the VM's name"))
	}
	switch {
	case len(t.Nodes) > 0 && t.Socket != "":
		errs = append(errs, wrong("socket", "expected socket or nodes, not both"))
	case len(t.Nodes) > 0 && (t.Identity == "" || t.Trust == ""):
		errs = append(errs, wrong("nodes", "needs identity and trust, the paths of NAME.pem and ca.crt (see: coloctl pki issue admin NAME)"))
	case len(t.Nodes) == 0 && (t.Identity != "" || t.Trust != ""):
		errs = append(errs, wrong("identity", "identity and trust are for nodes; a socket needs none"))
	case len(t.Nodes) == 0 && t.Socket == "":
		t.Socket = DefaultSocket
	}
	if t.State == FailedOver && t.Confirm != t.VM {
		errs = append(errs, wrong("confirm", "%q: expected the VM's name, %q: whoever gives it vouches that the other copy is dead; if it is not, two copies speak from now on", t.Confirm, t.VM))
	}
	if len(t.Nodes) > 1 && t.Primary == "" && (t.State == SwitchedOver || t.State == FailedOver) {
		errs = append(errs, wrong("primary", "missing: the node on which %s is to run", t.VM))
	}
	if t.Force && t.Grace > 0 {
		errs = append(errs, wrong("grace", "expected force or grace, not both"))
	}
	return errors.Join(errs...)
}

// withoutPlace takes lines and columns away, which mean nothing to somebody who gave a dictionary.
func withoutPlace(err error, dict bool) error {
	if !dict {
		return err
	}
	var all []error
	if j, ok := err.(interface{ Unwrap() []error }); ok { // a joined error is taken apart, not searched
		all = j.Unwrap()
	} else {
		all = []error{err}
	}
	for i, e := range all {
		var inv *colo.InvalidSpecError
		if errors.As(e, &inv) {
			all[i] = &colo.InvalidSpecError{File: "spec", Field: inv.Field, Msg: inv.Msg}
		}
	}
	return errors.Join(all...)
}

func orList(all []State) string {
	var out []string
	for _, s := range all {
		out = append(out, string(s))
	}
	return strings.Join(out, " or ")
}

func readState(t *Task, raw json.RawMessage) error {
	s, err := text(raw)
	if err != nil {
		return err
	}
	if !slices.Contains(states, State(s)) {
		return fmt.Errorf("%q: expected %s", s, orList(states))
	}
	t.State = State(s)
	return nil
}

// readSpec takes YAML in a string, or a dictionary.
func readSpec(t *Task, raw json.RawMessage) error {
	if raw[0] == '"' {
		s, err := text(raw)
		if err != nil {
			return err
		}
		if strings.TrimSpace(s) == "" {
			return errors.New("empty: expected a VM's spec")
		}
		t.Spec, t.File = []byte(s), "spec"
		return nil
	}
	var dict map[string]json.RawMessage
	if raw[0] != '{' || json.Unmarshal(raw, &dict) != nil {
		return errors.New("expected a dictionary, or YAML in a string")
	}
	// Templates make strings of numbers.
	var digits string
	if json.Unmarshal(dict["vcpus"], &digits) == nil {
		if n, err := strconv.Atoi(digits); err == nil {
			dict["vcpus"] = json.RawMessage(strconv.Itoa(n))
		}
	}
	full, err := json.Marshal(dict)
	if err != nil {
		return err
	}
	t.Spec, err = yaml.JSONToYAML(full)
	return err
}

func readSpecFile(t *Task, raw json.RawMessage) error {
	file, err := path(raw)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%w (on the host where the module runs)", err)
	}
	t.Spec, t.File = data, file
	return nil
}

func readSync(t *Task, raw json.RawMessage) error {
	s, err := text(raw)
	t.Sync = blockrepl.Mode(s)
	if err == nil && t.Sync != blockrepl.Bitmap && t.Sync != blockrepl.Full {
		err = fmt.Errorf("%q: expected %s or %s, or nothing for what is safe and quickest", s, blockrepl.Bitmap, blockrepl.Full)
	}
	return err
}

// readNodes takes a list of {name, addresses}, where addresses may be one.
func readNodes(t *Task, raw json.RawMessage) error {
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 {
		return errors.New("expected a list of {name: NODE, addresses: [HOST:PORT]}")
	}
	for i, n := range list {
		var e both.Endpoint
		for key, v := range n {
			var err error
			switch key {
			case "name":
				e.Node, err = text(v)
			case "addresses":
				if e.Addresses, err = texts(v); err != nil {
					return wrong(fmt.Sprintf("nodes[%d].addresses", i), "%v", err)
				}
			default:
				return wrong(fmt.Sprintf("nodes[%d].%s", i, key), "unknown: expected name and addresses")
			}
			if err != nil {
				return wrong(fmt.Sprintf("nodes[%d].%s", i, key), "%v", err)
			}
		}
		if e.Node == "" || len(e.Addresses) == 0 {
			return wrong(fmt.Sprintf("nodes[%d]", i), "expected a name and addresses")
		}
		if slices.ContainsFunc(t.Nodes, func(o both.Endpoint) bool { return o.Node == e.Node }) {
			return wrong(fmt.Sprintf("nodes[%d].name", i), "%q is there twice", e.Node)
		}
		t.Nodes = append(t.Nodes, e)
	}
	return nil
}

// text reads a string; numbers and truth values are taken as written.
func text(raw json.RawMessage) (string, error) {
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return "", err
	}
	switch v := v.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return strconv.FormatBool(v), nil
	}
	return "", errors.New("expected a string")
}

func texts(raw json.RawMessage) ([]string, error) {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		list = []json.RawMessage{raw}
	}
	var out []string
	for _, r := range list {
		s, err := text(r)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// path reads a file's name. What looks like a file's content is not repeated in the error: it may be a key.
func path(raw json.RawMessage) (string, error) {
	s, err := text(raw)
	switch {
	case err != nil:
		return "", err
	case strings.Contains(s, "-----BEGIN") || strings.ContainsAny(s, "\n\r"):
		return "", errors.New("expected the path of a file, found what may be its content")
	case s == "":
		return "", errors.New("empty: expected the path of a file")
	}
	return s, nil
}

// truth reads what Ansible takes for a truth value; templates make strings of them.
func truth(raw json.RawMessage) (bool, error) {
	s, err := text(raw)
	if err != nil {
		return false, errors.New("expected true or false")
	}
	switch strings.ToLower(s) {
	case "true", "yes", "on", "y", "t", "1":
		return true, nil
	case "false", "no", "off", "n", "f", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q: expected true or false", s)
}

const maxSpan = 7 * 24 * time.Hour

// span reads seconds, or a time like 10m.
func span(raw json.RawMessage, least time.Duration) (time.Duration, error) {
	s, err := text(raw)
	if err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(s)
	if n, nerr := strconv.ParseFloat(s, 64); nerr == nil && n >= 0 && n <= maxSpan.Seconds() {
		d, err = time.Duration(n*float64(time.Second)), nil
	}
	if err != nil || d < least || d > maxSpan {
		return 0, fmt.Errorf("%q: expected seconds, or a time like 10m, from %s to a week", s, least)
	}
	return d, nil
}
