package lab

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/netns"
)

// etcdPrefix is where colod-etcd has its records by default.
const etcdPrefix = "/coloctl/arbiter/v1/"

// findEtcd returns the program.
func findEtcd() (string, error) {
	path, err := exec.LookPath("etcd")
	if err != nil {
		return "", &PreconditionError{Op: "--arbiter etcd", Err: err, Remedy: "Install it; Debian's package is etcd-server."}
	}
	return path, nil
}

// startEtcd starts a cluster of one member and watches its records.
func (v *Voter) startEtcd(ctx context.Context) error {
	l := v.lab
	log, err := os.OpenFile(l.path(witnessName, "etcd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	client, peer := "http://"+hostPort(witnessName, etcdPort), "http://"+hostPort(witnessName, etcdPort+1)
	v.proc, err = program{
		name: "etcd", host: l.Topology.Witness, dir: l.path(witnessName), log: log, env: []string{"ETCD_UNSUPPORTED_ARCH="},
		argv: []string{
			l.opts.Assets.Etcd, "--name=witness", "--data-dir=" + l.path(witnessName, etcdData), "--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=witness=" + peer, "--log-level=warn",
		},
	}.start(ctx, l.note)
	if err != nil {
		return err
	}
	proc := v.proc
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	watching := make(chan struct{})
	l.wg.Go(func() { l.watchEtcd(life, watching) })
	l.wg.Go(func() {
		<-proc.done
		stop()
	})
	select {
	case <-watching:
		return nil
	case <-life.Done():
		return fmt.Errorf("etcd ended at its start; its log: %s", log.Name())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watchEtcd notes every record until ctx ends, by the cluster's HTTP gateway: a client of its own would bring dependencies that only
// colod-etcd has. began is closed when nothing can be missed any more.
func (l *Lab) watchEtcd(ctx context.Context, began chan struct{}) {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return netns.Dial(ctx, l.Topology.Witness.Netns(), network, addr)
	}}}
	defer client.CloseIdleConnections()
	end := []byte(etcdPrefix)
	end[len(end)-1]++ // the first key behind the prefix
	body, err := json.Marshal(map[string]any{"create_request": map[string]string{
		"key": base64.StdEncoding.EncodeToString([]byte(etcdPrefix)), "range_end": base64.StdEncoding.EncodeToString(end), "start_revision": "1",
	}})
	for err == nil && ctx.Err() == nil {
		var req *http.Request
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, "http://"+hostPort(witnessName, etcdPort)+"/v3/watch", bytes.NewReader(body))
		if err != nil {
			break
		}
		resp, doErr := client.Do(req)
		if doErr == nil {
			l.readEtcd(json.NewDecoder(resp.Body), began)
			_ = resp.Body.Close() // it has ended
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond): // it is starting, or has ended
		}
	}
	if err != nil {
		l.fail(fmt.Errorf("watch etcd: %w", err))
	}
}

func (l *Lab) readEtcd(answers *json.Decoder, began chan struct{}) {
	for {
		var a struct {
			Result struct {
				Created bool `json:"created"`
				Events  []struct {
					KV struct {
						Value []byte `json:"value"`
					} `json:"kv"`
				} `json:"events"`
			} `json:"result"`
		}
		if answers.Decode(&a) != nil {
			return // the stream has ended with the cluster
		}
		now := time.Now()
		if a.Result.Created {
			select {
			case <-began:
			default:
				close(began)
			}
		}
		for _, e := range a.Result.Events {
			var rec arbiter.Record
			if json.Unmarshal(e.KV.Value, &rec) == nil && rec.Generation > 0 {
				l.Grants.Add(now, rec)
			}
		}
	}
}
