// Command colod is the daemon of one node, or a witness. All it does is in internal/daemon; a main for nodes with an etcd cluster as their arbiter is in
// colo/arbiter/etcd, so that this one doesn't carry its dependencies.
package main

import (
	"os"

	"github.com/coloctl/coloctl/internal/daemon"
	"github.com/coloctl/coloctl/internal/version"
)

func main() {
	os.Exit(daemon.Program{Name: "colod", Version: version.String()}.Main(os.Args[1:]))
}
