package conform

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/lab"
)

// Options of Run.
type Options struct {
	QEMU, QEMUImg []string // argv prefixes
	Accel         string   // kvm or tcg
	Dir           string   // a folder with a short path, for sockets and images
}

// checkTimeout is far more than any check takes on a slow machine: it turns a hang into an answer.
const checkTimeout = 40 * time.Second

// The rules of Run's checks, as they are listed.
const (
	Features     = "features"
	Standby      = "standby"
	Capabilities = "capabilities"
	Attach       = "attach"
	KillStandby  = "failover, secondary killed"
	Resync       = "resync by bitmap"
	KillPrimary  = "failover, primary killed"
	Equal        = "disks after it"
	Yank         = "failover, secondary hangs (yank)"
	Again        = "attach again"
	YankPromote  = "failover, primary hangs (yank)"
	TLS          = "TLS (pre-shared key)"
	MPTCP        = "MPTCP, one of two links lost"
	Checkpoints  = "checkpoints"
)

// A story is a pair's life: each step needs those before it.
type story struct {
	encrypted bool // replication is, as it is on real hosts; the others are without, so that what fails has one reason
	multipath bool // it uses both links at once
	steps     []step
}

type step struct {
	rule   string
	do     func(*pair, context.Context) (found string, err error)
	remedy string // for a person whose QEMU fails here
}

var stories = []story{
	{steps: []step{
		{rule: Standby, do: (*pair).standby},
		{rule: Capabilities, do: (*pair).capabilities},
		{rule: Attach, do: (*pair).attach},
		{rule: KillStandby, do: (*pair).killSecondary},
		{rule: Resync, do: (*pair).resync},
		{rule: KillPrimary, do: (*pair).killPrimary},
		{rule: Equal, do: (*pair).compare},
	}},
	{steps: []step{
		{rule: Yank, do: (*pair).freezeSecondary},
		{rule: Again, do: (*pair).protect},
		{rule: YankPromote, do: (*pair).freezePrimary},
	}},
	{encrypted: true, steps: []step{
		{rule: TLS, do: (*pair).encrypt, remedy: "install a QEMU with GnuTLS, such as Debian's"},
	}},
	{multipath: true, steps: []step{
		{rule: MPTCP, do: (*pair).loseLink},
	}},
	{steps: []step{
		{rule: Checkpoints, do: (*pair).checkpoints, remedy: fmt.Sprintf("use KVM, or QEMU %d or newer", colo.LeastTCG)},
	}},
}

// Run adds to p what this QEMU can do. It needs the right to make network namespaces, as in a lab or as root. The error is for what keeps it from finding
// out; what QEMU can't do is in p.
func Run(ctx context.Context, o Options, p *Proof) (err error) {
	top, err := lab.NewTopology(2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, top.Close()) }()
	for i, s := range stories {
		if err := s.run(ctx, o, top, p, i); err != nil {
			return err
		}
	}
	return nil
}

// run plays a story with a pair of its own.
func (s story) run(ctx context.Context, o Options, top *lab.Topology, proof *Proof, number int) error {
	p, err := newPair(ctx, o, s, top, number)
	failed := ""
	var unfit *colo.UnfitError
	switch {
	case errors.As(err, &unfit) && number == 0:
		proof.Add(Features, unfit, "", unfit.Remedy)
		failed = Features
	case errors.As(err, &unfit):
		failed = "a QEMU that can do it"
		if s.encrypted { // what it lacks, only this story needs
			proof.Add(s.steps[0].rule, unfit, "", unfit.Remedy)
			return nil
		}
	case err != nil:
		return err
	case number == 0:
		proof.Add(Features, nil, "all that COLO needs", "")
	}
	for _, st := range s.steps {
		if failed != "" {
			proof.Skip(st.rule, "it begins with: "+failed)
			continue
		}
		if err := p.multipath(); s.multipath && err != nil {
			proof.Skip(st.rule, err.Error())
			continue
		}
		cctx, cancel := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("not done after %s", checkTimeout))
		found, err := st.do(p, cctx)
		if err != nil && cctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", context.Cause(cctx), err)
		}
		cancel()
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), p.close())
		}
		if !proof.Add(st.rule, err, found, st.remedy) {
			failed = st.rule
		}
	}
	return p.close()
}
