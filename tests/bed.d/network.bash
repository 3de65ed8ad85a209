# shellcheck shell=bash
# Three bridges in a namespace of their own (`switch`), so that nothing of the bed appears among the
# machine's links and no firewall of the machine stands between the hosts.

nets() {
  echo "$BED_INSIDE.0/24" "$BED_IB.0/24" "$BED_OUTSIDE.0/24"
}

# Without these a client started outside the bed by mistake would talk to strangers at the bed's
# addresses, over the machine's default route.
guard_machine() {
  local net taken
  for net in $(nets); do
    taken=$(ip -4 route show root "$net" | grep -v '^unreachable') || true
    if [[ -n $taken ]]; then
      complain "$net is in use on this machine; choose other nets (BED_INSIDE, BED_IB, BED_OUTSIDE)"
      return 1
    fi
    if [[ -n $(ip -4 route show exact "$net") && -n $(other_beds) ]]; then
      complain "another bed has $net; choose other nets (BED_INSIDE, BED_IB, BED_OUTSIDE)"
      return 1
    fi
  done
  for net in $(nets); do
    ip route replace unreachable "$net"
    echo "$net" >>"$BED_DIR/routes"
  done
}

unguard_machine() {
  local net
  for net in "$@"; do
    ip route del unreachable "$net" 2>/dev/null || true
  done
}

in_switch() {
  nsenter --target "$(init_of switch)" --net -- "$@"
}

make_bridges() {
  in_switch ip -batch - <<-END
	link add inside type bridge forward_delay 0
	link add ib type bridge forward_delay 0
	link add outside type bridge forward_delay 0
	link set inside up
	link set ib up
	link set outside up
	END
}

# Made from the address, so that neighbours need not forget the old one when a host comes back.
mac_of() {
  local octets
  IFS=. read -r -a octets <<<"$1"
  printf '02:bd:%02x:%02x:%02x:%02x' "${octets[@]}"
}

connect_host() {
  local host=$1 pid net interface address
  pid=$(init_of "$host")
  # `ip` looks for the number in the process numbers of the machine, where `switch` lives.
  while read -r net interface address; do
    echo "link add $host-$interface type veth peer name $interface address $(mac_of "$address") netns $pid"
    echo "link set $host-$interface master $net up"
  done < <(links_of "$host") | in_switch ip -batch -
  while read -r net interface address; do
    echo "addr add $address/24 dev $interface"
    echo "link set $interface up"
  done < <(links_of "$host") | nsenter --target "$pid" --net -- ip -batch -
  # As an admin should: what is set aside for jobs (50000 and up) is not given to outgoing connections.
  nsenter --target "$pid" --net -- sysctl -q -w net.ipv4.ip_local_port_range='32768 49999'
}

set_links() {
  local host=$1 state=$2 interface
  while read -r _ interface _; do
    in_switch ip link set "$host-$interface" "$state"
  done < <(links_of "$host")
}

# What an admin had on the gateway before us, in the tables that we share. gw1 drops what it is
# not told to forward, gw0 does not.
make_gateway() {
  local host=$1 forward=ACCEPT
  [[ $host != gw1 ]] || forward=DROP
  enter "$host" sysctl -q -w net.ipv4.ip_forward=1
  enter "$host" iptables-restore <<-END
	*filter
	:INPUT ACCEPT [0:0]
	:FORWARD $forward [0:0]
	:OUTPUT ACCEPT [0:0]
	:SITE-FIREWALL - [0:0]
	-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "site: known sessions" -j ACCEPT
	-A INPUT -i pub0 -j SITE-FIREWALL
	-A FORWARD -s $BED_INSIDE.0/24 -d 172.31.255.0/24 -m comment --comment "site: licence servers" -j ACCEPT
	-A SITE-FIREWALL -p tcp -m tcp --dport 25 -m comment --comment "site: no mail, \"ever\"" -j REJECT
	COMMIT
	*nat
	:PREROUTING ACCEPT [0:0]
	:INPUT ACCEPT [0:0]
	:OUTPUT ACCEPT [0:0]
	:POSTROUTING ACCEPT [0:0]
	:SITE-NAT - [0:0]
	-A PREROUTING -j SITE-NAT
	-A POSTROUTING -s $BED_INSIDE.0/24 -d 172.31.255.0/24 -m comment --comment "site: licence servers" -j MASQUERADE
	-A SITE-NAT -p tcp -m tcp -m addrtype --dst-type LOCAL --dport 8022 -m comment --comment "site: login node" -j DNAT --to-destination $BED_INSIDE.2:22
	COMMIT
	END
}
