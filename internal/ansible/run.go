package ansible

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/internal/both"
)

// lookPause is between two looks at a VM that something else has to happen to.
const lookPause = 300 * time.Millisecond

const (
	// tryPause is between two tries of a protection.
	tryPause = 2 * time.Second
	// maxRefused is how often a step may be refused because the VM has moved on since it was looked at, or fail.
	maxRefused = 5
	// codeFailed is of errors that the API has no name for: the engine tried, and it did not work.
	codeFailed api.Code = "failed"
)

var (
	errTimeout     = errors.New("the time is up")
	errInterrupted = errors.New("interrupted")
)

// stoppedError is returned when the waiting has ended before what was waited for.
type stoppedError struct {
	what  string // was waited for
	cause error
	next  string
}

func (e *stoppedError) Error() string { return e.what + ": " + e.cause.Error() }
func (e *stoppedError) Unwrap() error { return e.cause }

// triedError says what was tried, and where.
type triedError struct {
	what string
	err  error
}

func (e *triedError) Error() string { return e.what + ": " + e.err.Error() }
func (e *triedError) Unwrap() error { return e.err }

// run carries out one task.
type run struct {
	t    *Task
	r    *Reply
	s    *both.Site
	peer string // of the only node
	last *view  // nil before the first look
	then time.Time
}

// Run carries out the task in data, as far as ctx allows, and tells what came of it. It never returns nil.
func Run(ctx context.Context, data []byte) *Reply {
	r := &Reply{}
	t, err := ParseTask(data)
	if !t.NoLog {
		r.Invocation = invocation(data)
	}
	r.VM = t.VM
	if err != nil {
		r.fail(t, err)
		return r
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.Timeout, errTimeout)
	defer cancel()
	u := &run{t: t, r: r, then: time.Now()}
	var before picture
	err = u.open(ctx)
	if err == nil {
		defer u.s.Close()
		if err = u.look(ctx); err == nil {
			before = draw(u.last)
			err = u.reach(ctx)
		}
	}
	if u.last != nil {
		r.fill(u.last)
		if t.Diff && !t.NoLog {
			r.Diff = newDiff(t.VM, before, draw(u.last))
		}
	}
	if err != nil {
		r.fail(t, err)
	}
	return r
}

// open makes the clients.
func (u *run) open(ctx context.Context) (err error) {
	t := u.t
	if len(t.Nodes) > 0 {
		if u.s, err = both.Remote("task", t.Nodes, pki.Files{Identity: t.Identity, Trust: t.Trust}); err != nil {
			return &triedError{"read the certificates", err}
		}
		for _, n := range u.s.Nodes {
			if len(u.s.Nodes) == 1 {
				u.know(ctx, n)
			}
		}
		return u.named()
	}
	if u.s, err = both.Local(ctx, "task", t.Socket); err != nil {
		if u.s != nil {
			u.s.Close()
		}
		return &triedError{"reach the node's daemon", err}
	}
	u.know(ctx, u.s.Nodes[0])
	return u.named()
}

// know asks a lone node for its peer's name. Without an answer there is none: the first look will say what is wrong.
func (u *run) know(ctx context.Context, n *both.Target) {
	if st, err := n.Node(ctx); err == nil && st.Peer != nil {
		u.peer = st.Peer.Info.Name
	}
}

// named checks the node that the task names, and fills in the only one where it names none.
func (u *run) named() error {
	t := u.t
	if t.Primary == "" {
		if t.State == FailedOver {
			t.Primary = u.s.Nodes[0].Name
		}
		return nil
	}
	var names []string
	for _, n := range u.s.Nodes {
		names = append(names, n.Name)
	}
	if u.peer != "" && t.State != Present {
		names = append(names, u.peer)
	}
	if !slices.Contains(names, t.Primary) {
		u.s.Close()
		return wrong("primary", "%q: expected one of %v", t.Primary, names)
	}
	return nil
}

// look asks the nodes how the VM stands.
func (u *run) look(ctx context.Context) error {
	halves, err := u.s.Look(ctx, u.t.VM)
	v := &view{vm: u.t.VM, halves: halves, peer: u.peer}
	if err != nil && !errors.Is(err, colo.ErrNoVM) {
		return &triedError{"ask how " + u.t.VM + " stands", err}
	}
	if !v.known() {
		v.target = u.s.Nodes[0]
		for _, n := range u.s.Nodes {
			if n.Name == u.t.Primary {
				v.target = n
			}
		}
		u.last = v
		return nil
	}
	v.target, v.astray = u.s.Choose(u.t.VM, halves)
	from := v.target
	for _, h := range halves {
		if from == nil && h.Has() {
			from = h.Target
		}
	}
	if from != nil {
		if v.spec, v.tag, err = from.Spec(ctx, u.t.VM); err != nil {
			return &triedError{"read the spec of " + u.t.VM + " on " + from.String(), err}
		}
	}
	u.last = v
	return nil
}

// reach takes step after step until the goal is reached.
func (u *run) reach(ctx context.Context) error {
	refused, previewed := 0, false
	for {
		s := decide(u.t, u.last)
		switch {
		case s.done:
			return nil
		case s.fail != nil:
			return s.fail
		case u.t.Check && s.wait != "":
			u.r.Warnings = append(u.r.Warnings, "would wait: "+s.wait)
			return nil
		case u.t.Check:
			plan, err := u.preview(ctx, s.act, previewed)
			if err != nil {
				return err
			}
			u.r.Plan = append(u.r.Plan, plan...)
			u.r.Changed, previewed, u.last = true, true, imagine(u.t, u.last, s.act)
			continue
		case s.wait != "" && !u.t.Wait:
			u.r.Msg = s.wait + "; it was not waited for"
			return nil
		case s.wait != "":
			if err := u.pause(ctx, s.wait, lookPause); err != nil {
				return err
			}
		default:
			gone, err := u.take(ctx, s.act)
			switch {
			case gone:
				return nil
			case err == nil:
			case (mayPass(err) || failedTry(s.act, err)) && ctx.Err() == nil && u.t.Wait && refused < maxRefused:
				wait := lookPause
				if !errors.Is(err, colo.ErrPeerUnreachable) { // who comes back is waited for as long as the task allows
					refused++
				}
				if failedTry(s.act, err) {
					u.r.Warnings = append(u.r.Warnings, err.Error()+"; it is tried again")
					wait = tryPause
				}
				if perr := u.pause(ctx, err.Error(), wait); perr != nil {
					return perr
				}
			default:
				return err
			}
		}
		if err := u.look(ctx); err != nil {
			if ctx.Err() != nil {
				return u.stopped(ctx, fmt.Sprintf("%s: state %s is not reached yet", u.t.VM, u.t.State), "")
			}
			return err
		}
	}
}

// mayPass says whether another look is worthwhile after an error: the VM has moved on meanwhile, a daemon was restarted, or a peer is not back yet.
func mayPass(err error) bool {
	return errors.As(err, new(*colo.UnexpectedEventError)) || errors.Is(err, colo.ErrSpecChanged) || errors.Is(err, api.ErrNoOperation) ||
		errors.Is(err, colo.ErrPeerUnreachable) || errors.Is(err, api.ErrBusy)
}

// failedTry says whether a protection was tried and has failed for none of the reasons that need a person: the nodes try that again too, after a loss.
func failedTry(a action, err error) bool {
	var e *api.Error
	return a == actProtect && errors.As(err, &e) && e.Body.Code == codeFailed
}

// pause waits a moment for something that others have to do.
func (u *run) pause(ctx context.Context, what string, long time.Duration) error {
	select {
	case <-time.After(long):
		return nil
	case <-ctx.Done():
		return u.stopped(ctx, what, "")
	}
}

// stopped is the error of a waiting that was ended.
func (u *run) stopped(ctx context.Context, what, next string) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, errTimeout) {
		cause = fmt.Errorf("%w after %s", errTimeout, time.Since(u.then).Round(time.Second))
	}
	return &stoppedError{what, cause, next}
}

// take carries out one action. gone means that it goes on by itself, and the task wants no more.
func (u *run) take(ctx context.Context, a action) (gone bool, err error) {
	switch a {
	case actCreate, actEdit, actDelete:
		return false, u.change(ctx, a)
	case actNone, actStart, actStop, actProtect, actUnprotect, actSwitchover, actFailover:
	}
	n, vm := u.node(a), u.t.VM
	what := fmt.Sprintf("%s %s on %s", a, vm, n)
	op, err := underWay(ctx, n, vm, a)
	if err != nil {
		return false, &triedError{what, err}
	}
	if op.ID == "" {
		body, ask := u.request(n, a)
		if _, err := n.DryRun(ctx, vm, string(a), body); err != nil { // what is refused leaves no trace
			return false, &triedError{what, err}
		}
		if op, err = ask(ctx); err != nil {
			return false, &triedError{what, err}
		}
		u.r.Changed = true
	}
	at := len(u.r.Operations)
	u.r.Operations = append(u.r.Operations, reportOperation(op, n.Name, time.Now()))
	if !u.t.Wait {
		u.r.Msg = fmt.Sprintf("%s goes on; to wait for it: coloctl wait %s", what, op.ID)
		return true, u.look(ctx)
	}
	end, err := n.Wait(ctx, op.ID, func(o api.Operation) { op = o })
	if end.ID != "" {
		op = end
	}
	u.r.Operations[at] = reportOperation(op, n.Name, time.Now())
	if ctx.Err() != nil && op.State == api.Running {
		text := what
		if p := progress(op); p != "" {
			text += " (" + p + ")"
		}
		return false, u.stopped(ctx, text, "it goes on: run the task again, which waits for the rest, or: coloctl wait "+op.ID)
	}
	if err != nil {
		return false, &triedError{what, err}
	}
	return false, nil
}

// underWay returns the operation, begun by somebody else, that does already what is wanted, and of which the VM's state needn't tell yet.
func underWay(ctx context.Context, n *both.Target, vm string, a action) (api.Operation, error) {
	if a == actStop || a == actFailover { // how matters
		return api.Operation{}, nil
	}
	ops, err := n.Operations(ctx, vm)
	if err != nil {
		return api.Operation{}, err
	}
	for _, op := range ops {
		if op.Kind == string(a) && op.State == api.Running {
			return op, nil
		}
	}
	return api.Operation{}, nil
}

// node is whom an action is asked of.
func (u *run) node(a action) *both.Target {
	if a == actFailover {
		if h := u.last.on(u.t.Primary); h != nil && h.Target != nil {
			return h.Target
		}
	}
	return u.last.target
}

// request makes the body of a request, and the request.
func (u *run) request(n *both.Target, a action) (body any, ask func(context.Context) (api.Operation, error)) {
	t := u.t
	plain := api.Request{Reason: t.Reason}
	stop := api.StopRequest{Request: plain, Force: t.Force, Timeout: t.Grace.Seconds()}
	sync := api.ResyncRequest{Request: plain, Mode: t.Sync}
	force := api.FailoverRequest{Request: plain, Force: true, Confirm: t.Confirm}
	switch a {
	case actStart:
		return plain, func(ctx context.Context) (api.Operation, error) { return n.Start(ctx, t.VM, plain) }
	case actStop:
		return stop, func(ctx context.Context) (api.Operation, error) { return n.Stop(ctx, t.VM, stop) }
	case actProtect:
		return sync, func(ctx context.Context) (api.Operation, error) { return n.Protect(ctx, t.VM, sync) }
	case actUnprotect:
		return plain, func(ctx context.Context) (api.Operation, error) { return n.Unprotect(ctx, t.VM, plain) }
	case actSwitchover:
		return plain, func(ctx context.Context) (api.Operation, error) { return n.Switchover(ctx, t.VM, plain) }
	case actFailover:
		return force, func(ctx context.Context) (api.Operation, error) { return n.Failover(ctx, t.VM, force) }
	case actNone, actCreate, actEdit, actDelete:
	}
	panic("no request for " + string(a))
}

// change carries out what is over at once.
func (u *run) change(ctx context.Context, a action) error {
	t := u.t
	text := api.SpecText{YAML: t.Spec, File: t.File, Reason: t.Reason}
	do := func(n *both.Target, f func() error) error {
		begun := time.Now()
		if err := f(); err != nil {
			return &triedError{fmt.Sprintf("%s %s on %s", a, t.VM, n), err}
		}
		u.r.Changed = true
		u.r.Operations = append(u.r.Operations, OperationReport{Kind: string(a), Node: n.Name, State: string(api.Done), Seconds: seconds(begun, time.Now(), begun)})
		return nil
	}
	n := u.last.target
	switch a {
	case actCreate:
		return do(n, func() error { _, err := n.Create(ctx, text); return err })
	case actEdit:
		return do(n, func() error { _, err := n.SetSpec(ctx, t.VM, text, u.last.tag); return err })
	}
	for _, h := range u.known() {
		err := do(h.Target, func() error {
			return h.Target.Delete(ctx, t.VM, api.DeleteRequest{Images: t.DeleteImages, Reason: t.Reason})
		})
		if err != nil {
			return err
		}
	}
	for _, h := range u.last.halves {
		if h.Target == nil && (h.Has() || h.Error != "") {
			u.r.Warnings = append(u.r.Warnings, fmt.Sprintf("%s is not removed on %s, which this task does not reach: give the task to that host too", t.VM, h.Node))
		}
	}
	return nil
}

// known are the halves that are reached, the newest first: the arbiter forgets the VM only for who knows its last generation.
func (u *run) known() []*both.Half {
	var out []*both.Half
	for i := range u.last.halves {
		if h := &u.last.halves[i]; h.Has() && h.Target != nil {
			out = append(out, h)
		}
	}
	slices.SortStableFunc(out, both.NewerFirst)
	return out
}

// preview tells what an action would do. The nodes are asked about the first one only: they judge from where they are.
func (u *run) preview(ctx context.Context, a action, later bool) ([]PlanReport, error) {
	t := u.t
	switch a {
	case actCreate:
		steps := []string{}
		for _, d := range t.Want.Disks {
			if d.ReadOnly {
				continue
			}
			steps = append(steps, fmt.Sprintf("make the image %s (%s, %s) unless it is there", d.File, d.Format, d.Size))
		}
		return []PlanReport{{string(a), u.last.target.Name, append(steps, "store the VM")}}, nil
	case actEdit:
		return []PlanReport{{string(a), u.last.target.Name, []string{"store the spec"}}}, nil
	case actDelete:
		var out []PlanReport
		for _, h := range u.known() {
			steps := []string{"let the arbiter forget the VM", "forget the VM"}
			if t.DeleteImages {
				steps = append([]string{"delete its disk images"}, steps...)
			}
			out = append(out, PlanReport{string(a), h.Node, steps})
		}
		return out, nil
	}
	n := u.node(a)
	if later {
		return []PlanReport{{string(a), n.Name, []string{}}}, nil
	}
	body, _ := u.request(n, a)
	dry, err := n.DryRun(ctx, t.VM, string(a), body)
	if err != nil {
		return nil, &triedError{fmt.Sprintf("%s %s on %s (dry run)", a, t.VM, n), err}
	}
	var out []PlanReport
	for _, p := range dry.Previews {
		kind := string(p.Plan)
		if kind == "" {
			kind = string(a)
		}
		out = append(out, PlanReport{kind, p.Node, p.Steps})
	}
	return out, nil
}
