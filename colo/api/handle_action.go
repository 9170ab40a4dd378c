package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
)

// Request is the body of a request that leads to an operation. All of it is optional but where said.
type Request struct {
	Reason string `json:"reason,omitempty"` // for the history
}

// StartRequest is the body of a start.
type StartRequest struct {
	Request
	// AcceptDataLoss boots a copy that may be old or is incomplete: what clients have seen since then is lost. It needs Confirm, and an administrator.
	AcceptDataLoss bool   `json:"accept_data_loss,omitempty"`
	Confirm        string `json:"confirm,omitempty"` // the VM's name
}

// StopRequest is the body of a stop.
type StopRequest struct {
	Request
	Force   bool    `json:"force,omitempty"`   // end QEMU at once instead of asking the guest
	Timeout float64 `json:"timeout,omitempty"` // seconds that the guest has for shutting down; 60 when 0
}

// ResyncRequest is the body of a protect or a resync.
type ResyncRequest struct {
	Request
	Mode blockrepl.Mode `json:"mode,omitempty"` // bitmap, checksum or full; what is safe and quickest when empty
	Node string         `json:"node,omitempty"` // by which peer; the VM's present one when empty
}

// TuneRequest is the body of a change of a resync that runs.
type TuneRequest struct {
	Request
	colo.ResyncTune
}

// FailoverRequest is the body of a failover. Both Force and Confirm are needed: the caller vouches that the other copy is dead.
type FailoverRequest struct {
	Request
	Force   bool   `json:"force"`
	Confirm string `json:"confirm"` // the VM's name
	// AcceptDataLoss lets it go on even if the arbiter has let another copy go on.
	AcceptDataLoss bool `json:"accept_data_loss,omitempty"`
}

// DryRun is what a request would lead to.
type DryRun struct {
	Previews []colo.Preview `json:"previews"` // in order: one request may need another one first
}

// foresight tells what a request would lead to, or why it would be refused. What has no plan has no previews.
type foresight func(context.Context) ([]colo.Preview, error)

// preview is the foresight of a request that the engine's table knows, after a check of what the table doesn't; check may be nil.
func (s *Server) preview(vm string, ev colo.EventKind, check func(context.Context) error) foresight {
	return func(ctx context.Context) ([]colo.Preview, error) {
		p, err := s.opts.Node.Preview(vm, ev)
		if err == nil && check != nil {
			err = check(ctx)
		}
		return []colo.Preview{p}, err
	}
}

// checked is the foresight of a request without a plan.
func checked(check func(context.Context) error) foresight {
	return func(ctx context.Context) ([]colo.Preview, error) { return []colo.Preview{}, check(ctx) }
}

// action begins an operation, or tells what it would do.
func (s *Server) action(w http.ResponseWriter, r *request, kind, reason string, foresee foresight, do func(context.Context) error) error {
	dry, err := r.flag("dry_run")
	if err != nil {
		return err
	}
	if err := s.exists(r.vm); err != nil {
		return err
	}
	if dry {
		previews, err := foresee(r.Context())
		if err != nil {
			return err
		}
		reply(w, http.StatusOK, DryRun{Previews: previews})
		return nil
	}
	op, err := s.ops.begin(Operation{VM: r.vm, Kind: kind, By: r.caller.String(), Reason: reason}, r.Header.Get("Idempotency-Key"), func(ctx context.Context) error {
		s.remark(r, kind, reason)
		err := do(ctx)
		s.refuse(r, kind, err)
		return err
	})
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/operations/"+op.ID)
	reply(w, http.StatusAccepted, op)
	return nil
}

func (s *Server) start(w http.ResponseWriter, r *request) error {
	var in StartRequest
	if err := bodyJSON(r.Request, &in, true); err != nil {
		return err
	}
	if in.AcceptDataLoss {
		if in.Confirm != r.vm {
			return apiErrorf(ErrUnconfirmed, "confirm must be the VM's name, %q: what clients have seen since this copy was current is lost", r.vm)
		}
		if !r.caller.Role.Allows(pki.Admin) {
			return apiErrorf(ErrForbidden, "accepting a loss of data needs the role %s, %s has %s", pki.Admin, r.caller.Name, r.caller.Role)
		}
	}
	return s.action(w, r, "start", in.Reason, s.preview(r.vm, colo.ReqStart, func(ctx context.Context) error { return s.opts.Node.CheckStart(ctx, r.vm) }), func(ctx context.Context) error {
		return s.opts.Node.StartWith(ctx, r.vm, colo.StartOptions{AcceptDataLoss: in.AcceptDataLoss})
	})
}

func (s *Server) stopVM(w http.ResponseWriter, r *request) error {
	var in StopRequest
	if err := bodyJSON(r.Request, &in, true); err != nil {
		return err
	}
	if in.Timeout < 0 || in.Timeout > 24*3600 {
		return &fieldError{field: "timeout", msg: fmt.Sprintf("%v: expected seconds, up to a day", in.Timeout)}
	}
	o := colo.StopOptions{Force: in.Force, Timeout: time.Duration(in.Timeout * float64(time.Second))}
	foresee := func(context.Context) ([]colo.Preview, error) { return s.opts.Node.PreviewStop(r.vm, o) }
	return s.action(w, r, "stop", in.Reason, foresee, func(ctx context.Context) error { return s.opts.Node.Stop(ctx, r.vm, o) })
}

func (s *Server) protect(w http.ResponseWriter, r *request) error {
	return s.attach(w, r, "protect")
}

// resync is a protection with the mode that the caller wants, so it is of use only where none is in force.
func (s *Server) resync(w http.ResponseWriter, r *request) error { return s.attach(w, r, "resync") }

func (s *Server) attach(w http.ResponseWriter, r *request, kind string) error {
	var in ResyncRequest
	if err := bodyJSON(r.Request, &in, true); err != nil {
		return err
	}
	switch in.Mode {
	case "", blockrepl.Bitmap, blockrepl.Checksum, blockrepl.Full:
	default:
		return &fieldError{field: "mode", msg: fmt.Sprintf("%q: expected %s, %s or %s", in.Mode, blockrepl.Bitmap, blockrepl.Checksum, blockrepl.Full)}
	}
	if err := s.exists(r.vm); err != nil {
		return err
	}
	if kind == "resync" {
		p, err := s.opts.Node.Preview(r.vm, colo.ReqProtect)
		if err != nil {
			return err
		}
		if p.Plan == "" { // protected: its disks are equal
			return &colo.UnexpectedEventError{VM: r.vm, State: p.From, Event: "resync"}
		}
	}
	o := colo.ProtectOptions{Mode: in.Mode, Node: in.Node}
	foresee := s.preview(r.vm, colo.ReqProtect, func(ctx context.Context) error { return s.opts.Node.CheckProtect(ctx, r.vm, o) })
	return s.action(w, r, kind, in.Reason, foresee, func(ctx context.Context) error { return s.opts.Node.Protect(ctx, r.vm, o) })
}

// tuneResync changes one that runs.
func (s *Server) tuneResync(w http.ResponseWriter, r *request) error {
	var in TuneRequest
	if err := bodyJSON(r.Request, &in, false); err != nil {
		return err
	}
	if in.Limit == nil && in.Pause == nil {
		return &fieldError{field: "limit", msg: "missing: expected limit, pause or both"}
	}
	if in.Limit != nil && *in.Limit < 0 {
		return &fieldError{field: "limit", msg: fmt.Sprintf("%d: expected bytes a second, or 0 for no limit", *in.Limit)}
	}
	if done, err := dryRun(w, r, func() error { return s.opts.Node.CheckTuneResync(r.vm, in.ResyncTune) }); done {
		return err
	}
	if err := s.opts.Node.TuneResync(r.Context(), r.vm, in.ResyncTune); err != nil {
		return err
	}
	s.remark(r, "tune-resync", in.Reason)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) unprotect(w http.ResponseWriter, r *request) error {
	return s.simple(w, r, "unprotect", s.preview(r.vm, colo.ReqUnprotect, nil), s.opts.Node.Unprotect)
}

func (s *Server) switchover(w http.ResponseWriter, r *request) error {
	foresee := s.preview(r.vm, colo.ReqSwitchover, func(ctx context.Context) error { return s.opts.Node.CheckSwitchover(ctx, r.vm) })
	return s.simple(w, r, "switchover", foresee, s.opts.Node.Switchover)
}

func (s *Server) simple(w http.ResponseWriter, r *request, kind string, foresee foresight, do func(context.Context, string) error) error {
	var in Request
	if err := bodyJSON(r.Request, &in, true); err != nil {
		return err
	}
	return s.action(w, r, kind, in.Reason, foresee, func(ctx context.Context) error { return do(ctx, r.vm) })
}

func (s *Server) checkpoint(w http.ResponseWriter, r *request) error {
	return s.simple(w, r, "checkpoint", checked(func(context.Context) error { return s.opts.Node.CheckCheckpoint(r.vm) }), s.opts.Node.Checkpoint)
}

func (s *Server) restoreRecord(w http.ResponseWriter, r *request) error {
	return s.simple(w, r, "restore-record", checked(func(ctx context.Context) error { return s.opts.Node.CheckRestoreRecord(ctx, r.vm) }), s.opts.Node.RestoreRecord)
}

func (s *Server) failover(w http.ResponseWriter, r *request) error {
	var in FailoverRequest
	if err := bodyJSON(r.Request, &in, false); err != nil {
		return err
	}
	switch {
	case !in.Force:
		return apiErrorf(ErrUnconfirmed, "a failover without a loss is a switchover; one that the arbiter has not allowed needs force")
	case in.Confirm != r.vm:
		return apiErrorf(ErrUnconfirmed, "confirm must be the VM's name, %q: if its other copy lives, two copies speak from now on", r.vm)
	}
	o := colo.ForceOptions{AcceptDataLoss: in.AcceptDataLoss}
	foresee := s.preview(r.vm, colo.ReqForce, func(ctx context.Context) error { return s.opts.Node.CheckForce(ctx, r.vm, o) })
	return s.action(w, r, "failover", in.Reason, foresee, func(ctx context.Context) error { return s.opts.Node.ForceWith(ctx, r.vm, o) })
}
