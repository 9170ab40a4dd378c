package etcd

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// DefaultPrefix of the keys.
const DefaultPrefix = "/coloctl/arbiter/v1/"

// Errors of this backend.
var (
	// ErrOtherCluster is returned when another cluster than the configured one answers. It can't speak for the past.
	ErrOtherCluster = errors.New("another etcd cluster than the one configured")

	// ErrDamaged is returned when a key holds what isn't a record of its VM. Somebody else writes there.
	ErrDamaged = errors.New("not an arbiter record")
)

// Options of New.
type Options struct {
	Node      string   // who claims. Required.
	Endpoints []string // host:port or URLs; https:// or TLS for an encrypted connection. Required.
	Prefix    string   // Default: DefaultPrefix. A slash is added if it has none at its end.

	TLS                *tls.Config // nil: as the endpoints say
	Username, Password string      // empty: no authentication

	// ClusterID of the only cluster to be trusted, see [Arbiter.ClusterID]. 0: not checked.
	ClusterID uint64
	// Timeout for a call, if its context doesn't end earlier. Default: 5 s.
	Timeout time.Duration
	// Attempt bounds one request of a call, so that another member of the cluster can be asked. Default: 1 s.
	Attempt time.Duration
	// DialTimeout for one connection, and for the first authentication. Default: 1 s.
	DialTimeout time.Duration
}

// Arbiter is an [arbiter.Arbiter].
type Arbiter struct {
	opt Options
	cl  *clientv3.Client
}

var _ arbiter.Arbiter = (*Arbiter)(nil)

// New returns an arbiter. Without a username nothing is sent yet, so it succeeds whether or not the cluster can be reached; with one, etcd's
// client wants a token first, and New returns [arbiter.ErrUnreachable] if it gets none. Close ends its goroutines.
func New(ctx context.Context, o Options) (*Arbiter, error) {
	switch {
	case o.Node == "":
		return nil, errors.New("etcd arbiter without a node name")
	case len(o.Endpoints) == 0:
		return nil, errors.New("etcd arbiter without endpoints")
	case o.Password != "" && o.TLS == nil && !allTLS(o.Endpoints):
		return nil, errors.New("etcd arbiter would send its password over an unencrypted connection")
	}
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if !strings.HasSuffix(o.Prefix, "/") {
		o.Prefix += "/"
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Attempt <= 0 {
		o.Attempt = time.Second
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = time.Second
	}
	cl, err := clientv3.New(clientv3.Config{
		Context:     context.WithoutCancel(ctx),
		Endpoints:   o.Endpoints,
		DialTimeout: o.DialTimeout,
		TLS:         o.TLS,
		Username:    o.Username, Password: o.Password,
		// A member that vanished without a word must not hold a claim for the minutes that TCP would.
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: time.Second,
		Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("%w: etcd at %s: %w", arbiter.ErrUnreachable, strings.Join(o.Endpoints, ", "), err)
	}
	return &Arbiter{opt: o, cl: cl}, nil
}

func allTLS(endpoints []string) bool {
	for _, e := range endpoints {
		if !strings.HasPrefix(e, "https://") && !strings.HasPrefix(e, "unixs:") {
			return false
		}
	}
	return true
}

// Close ends the connections. Calls under way fail.
func (a *Arbiter) Close() error { return a.cl.Close() }

// ClusterID asks which cluster this is, for the configuration.
func (a *Arbiter) ClusterID(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, a.opt.Timeout)
	defer cancel()
	resp, err := a.cl.MemberList(ctx)
	if err != nil {
		return 0, a.unreachable(ctx, err)
	}
	return resp.Header.ClusterId, nil
}

// Get implements arbiter.Arbiter.
func (a *Arbiter) Get(ctx context.Context, vm string) (arbiter.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, a.opt.Timeout)
	defer cancel()
	cur, err := a.read(ctx, vm)
	if err != nil {
		return arbiter.Record{}, err
	}
	if cur.record == nil {
		return arbiter.Record{}, fmt.Errorf("%w: %s", arbiter.ErrNoRecord, vm)
	}
	return *cur.record, nil
}

// Advance implements arbiter.Arbiter.
func (a *Arbiter) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	if err := next.Validate(); err != nil {
		return arbiter.Record{}, err
	}
	if next.By != a.opt.Node {
		return arbiter.Record{}, fmt.Errorf("%w: claim by %q sent by node %q", arbiter.ErrInvalid, next.By, a.opt.Node)
	}
	next = next.Normal()
	raw, err := json.Marshal(next)
	if err != nil {
		return arbiter.Record{}, err
	}
	var out arbiter.Record
	err = a.change(ctx, next.VM, clientv3.OpPut(a.opt.Prefix+next.VM, string(raw)), func(cur *arbiter.Record) (changed bool, err error) {
		out, changed, err = arbiter.Decide(cur, next)
		return changed, err
	}, func(cur *arbiter.Record) bool { return cur != nil && cur.Equal(next) })
	if err != nil {
		return arbiter.Record{}, err
	}
	return out, nil
}

// Forget implements arbiter.Arbiter.
func (a *Arbiter) Forget(ctx context.Context, vm string, generation uint64) error {
	return a.change(ctx, vm, clientv3.OpDelete(a.opt.Prefix+vm), func(cur *arbiter.Record) (bool, error) {
		if cur != nil && cur.Generation != generation {
			return false, fmt.Errorf("%w: %s is at %d, not %d", arbiter.ErrConflict, vm, cur.Generation, generation)
		}
		return cur != nil, nil
	}, func(cur *arbiter.Record) bool { return cur == nil })
}

// change does op, if decide says so of what is stored, and of nothing else.
//
// A transaction whose answer was lost may have been carried out, or be carried out later, as long as the key's revision is the one it was made
// for. So it is repeated while that is the case; and if the key changed in the meantime, it was either by it (done) or nobody can tell.
func (a *Arbiter) change(ctx context.Context, vm string, op clientv3.Op, decide func(*arbiter.Record) (bool, error), done func(*arbiter.Record) bool) error {
	ctx, cancel := context.WithTimeout(ctx, a.opt.Timeout)
	defer cancel()
	var lost *stored // what the transaction without an answer was made for
	cur, err := a.read(ctx, vm)
	for {
		if err != nil {
			return err
		}
		if lost != nil && cur.revision != lost.revision {
			if done(cur.record) {
				return nil
			}
			return a.unreachable(ctx, errors.New("an answer was lost, and the record has changed since"))
		}
		if changed, derr := decide(cur.record); derr != nil || !changed {
			return derr
		}
		key := a.opt.Prefix + vm
		attempt, end := context.WithTimeout(ctx, a.opt.Attempt)
		resp, terr := a.cl.Txn(attempt).If(clientv3.Compare(clientv3.ModRevision(key), "=", cur.revision)).Then(op).Else(clientv3.OpGet(key)).Commit()
		end()
		switch {
		case terr != nil && permanent(terr):
			return a.unreachable(ctx, terr)
		case terr != nil:
			made := cur
			lost = &made
			if cur, err = a.read(ctx, vm); err != nil {
				err = a.unreachable(ctx, terr)
			}
		case a.check(resp.Header) != nil:
			return a.check(resp.Header)
		case resp.Succeeded:
			return nil
		default:
			cur, err = a.decode(vm, resp.Header, resp.Responses[0].GetResponseRange().Kvs)
		}
	}
}

type stored struct {
	record   *arbiter.Record
	revision int64 // 0: no such key
}

// read repeats itself, as a member of the cluster may have vanished without a word.
func (a *Arbiter) read(ctx context.Context, vm string) (stored, error) {
	if vm == "" {
		return stored{}, fmt.Errorf("%w: no VM named", arbiter.ErrInvalid)
	}
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return stored{}, a.unreachable(ctx, err)
		}
		attempt, end := context.WithTimeout(ctx, a.opt.Attempt)
		resp, err := a.cl.Get(attempt, a.opt.Prefix+vm)
		end()
		if err == nil {
			return a.decode(vm, resp.Header, resp.Kvs)
		}
		if permanent(err) {
			return stored{}, a.unreachable(ctx, err)
		}
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			again.Stop()
			return stored{}, a.unreachable(ctx, err)
		case <-again.C:
		}
	}
}

// permanent: the cluster has answered, and will answer the same again. It was not carried out.
func permanent(err error) bool {
	code := status.Code(err)
	if e := (rpctypes.EtcdError{}); errors.As(err, &e) {
		code = e.Code() // which isn't seen by package status
	}
	switch code {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.FailedPrecondition, codes.Unimplemented:
		return true
	default:
		return false
	}
}

func (a *Arbiter) decode(vm string, h *pb.ResponseHeader, kvs []*mvccpb.KeyValue) (stored, error) {
	if err := a.check(h); err != nil {
		return stored{}, err
	}
	if len(kvs) == 0 {
		return stored{}, nil
	}
	var r arbiter.Record
	err := json.Unmarshal(kvs[0].Value, &r)
	if err == nil && r.VM != vm {
		err = fmt.Errorf("it is about %q", r.VM)
	}
	if err == nil {
		err = r.Validate()
	}
	if err != nil {
		return stored{}, fmt.Errorf("%w at %s%s: %v", ErrDamaged, a.opt.Prefix, vm, err) // not %w: it isn't the caller's record that is invalid
	}
	return stored{record: &r, revision: kvs[0].ModRevision}, nil
}

func (a *Arbiter) check(h *pb.ResponseHeader) error {
	if a.opt.ClusterID != 0 && h.ClusterId != a.opt.ClusterID {
		return fmt.Errorf("%w: %x, not %x", ErrOtherCluster, h.ClusterId, a.opt.ClusterID)
	}
	return nil
}

func (a *Arbiter) unreachable(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return fmt.Errorf("%w: etcd at %s: %w", arbiter.ErrUnreachable, strings.Join(a.opt.Endpoints, ", "), err)
}
