// Command colo_vm is a binary module of Ansible: it brings one VM to the state that a task names. All it does is in internal/ansible; its parameters are described
// in examples/ansible/plugins/modules/colo_vm.yml, which ansible-doc shows.
package main

import (
	"os"

	"github.com/coloctl/coloctl/internal/ansible"
	"github.com/coloctl/coloctl/internal/version"
)

func main() { os.Exit(ansible.Main(os.Args[1:], version.String(), os.Stdout, os.Stderr)) }
